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
    copied = Substep("copy", {"from": model.ref(table), "to": to(model.alias, head)})
    steps = [copied, *model.configure(flag_patch(model.place, TIED, False))]
    yield preserve(view, model, steps, prove=prove)


def _pair(model: Described) -> tuple[str, str]:
    """The names of the table for words that go out, and of that for those that come in. Raises Refusal."""
    model.require(HEAD)
    pairs = [model.names(pair) for pair in model.place.family.tied.items()]
    found = next((pair for pair in pairs if pair[1] in model.kin), None)
    if found is None:
        raise Refusal("structure-words", f"models of the family {model.place.family.name} have no words to tie",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    head, table = found
    return head, table
