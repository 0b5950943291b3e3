"""Words that are tied: one table for the words that come in and those that go out."""

from __future__ import annotations

from collections.abc import Iterator

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.presence import TIED, flag_patch
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, describe, to
from brainsurgery_jax.structure.given import HEAD
from brainsurgery_jax.structure.proof import preserve

_OF_WHISPER = "proj_out.weight"


def tie(view: View, which: ModelAsked, *, replace: bool, prove: bool) -> Iterator[Edit]:
    """What the op `tie` does."""
    model = describe(view, which)
    head, table = _pair(model)
    if head not in model.kin:
        raise Refusal("structure-words", f"there is no '{head}': the words of '{model.alias}' are tied already",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    same = Substep("assert", {"identical": {"left": model.ref(head), "right": to(model.alias, table)}})
    steps = [*([] if replace else [same]), Substep("delete", {"target": model.ref(head)}),
             *model.configure(flag_patch(model.place, TIED, True))]  # fmt: skip
    yield preserve(view, model, steps, prove=prove)


def untie(view: View, which: ModelAsked, *, prove: bool) -> Iterator[Edit]:
    """What the op `untie` does."""
    model = describe(view, which)
    head, table = _pair(model)
    if head in model.kin:
        raise Refusal("structure-words", f"there is '{head}' already: the words of '{model.alias}' are not tied",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    copied = [Substep("copy", {"from": model.ref(name), "to": to(model.alias, copy)})
              for name, copy in _copies(model, head, table)]  # fmt: skip
    steps = [*copied, *model.configure(flag_patch(model.place, TIED, False))]
    yield preserve(view, model, steps, prove=prove)


def _copies(model: Described, head: str, table: str) -> Iterator[tuple[str, str]]:
    """The tensors that a model with tied words does without, each with that in whose place it stands: besides the head
    the tables of encoder and decoder where one is shared (BART), and the bias of the head (BERT)."""
    yield table, head
    stem, shared, _ = table.rpartition("shared.weight")
    if shared:
        yield from ((table, f"{stem}{part}.embed_tokens.weight") for part in ("encoder", "decoder"))
    bias = head.removesuffix("decoder.weight") + "bias"
    if head.endswith(".decoder.weight") and bias in model.kin:
        yield bias, head.removesuffix("weight") + "bias"


def _pair(model: Described) -> tuple[str, str]:
    """The names of the table for words that go out, and of that for those that come in. Raises Refusal."""
    model.require(HEAD)
    pairs = [model.names(pair) for pair in model.place.family.tied.items()]
    found = next((pair for pair in pairs if pair[1] in model.kin), None)
    if found is not None and found[0] == _OF_WHISPER and model.place.config.get("model_type") != "whisper":
        found = "lm_head.weight", found[1]  # OPT
    if found is None:
        raise Refusal("structure-words", f"models of the family {model.place.family.name} have no words to tie",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    head, table = found
    return head, table
