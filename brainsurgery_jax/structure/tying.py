"""Words that are tied: one table for the words that come in and those that go out."""

from __future__ import annotations

from collections.abc import Iterator

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.presence import TIED, flag_patch
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, describe, to
from brainsurgery_jax.structure.given import HEAD
from brainsurgery_jax.structure.proof import preserve


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
    """The tensors that a model with tied words does without, each with that in whose place it stands."""
    yield table, head
    for source, copies in model.place.family.copied.items():
        (name,) = model.names([source])
        if name in model.kin:
            yield from ((name, copy) for copy in model.names(copies))


def _pair(model: Described) -> tuple[str, str]:
    """The names of the table for words that go out, and of that for those that come in. Raises Refusal."""
    model.require(HEAD)
    found = next((pair for pair in model.tied if pair[1] in model.kin), None)
    if found is None:
        name = model.place.family.name
        why = f"models of the family {name} have no words to tie"
        if model.sizes.values.get("V") is not None:  # T5 scales what it compares with words, if they are tied
            why = f"how models of the family {name} tie words is not known"
        raise Refusal("structure-words", why, key="alias", hint="Leave the step out.")
    return found
