"""Steps that change a model and not what it computes, and the proof of it that a plan may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Expand, Substep, View
from brainsurgery_jax.structure.described import Described, to

SAME_LOGITS: Mapping[str, float] = {"max_diff": 1e-3}
"""How far a logit may be from what it was, for the proof."""
SAME_PROBABILITIES: Mapping[str, float] = {"kl": 1e-5}
"""How far the probabilities of the next token may be from what they were, where logits may shift: nats a token."""


TOKENS, POSITIONS = 32, "P"
"""How many tokens are looked at, and the dim that says how many a model has positions for, where it has a table."""

Change = Callable[[str], Iterable[Substep]]
"""The steps that change the copy of a model, given its alias, before it is compared."""


def preserve(
    view: View, model: Described, steps: Iterable[Substep], *, prove: bool, bounds: Mapping[str, float] = SAME_LOGITS,
    before: Change | None = None, after: Change | None = None,
) -> Expand:  # fmt: skip
    """Steps that keep what a model computes; to prove it, the model is kept as it was, and compared after them.

    `before` and `after` change copies of the model as it was and as it is, where the two are equal only then: without
    the heads that go, or with the words that both have.
    """
    if not prove:
        return Expand(tuple(steps))
    if model.given is not None:
        raise Refusal("structure-model", "it is not known what a model computes whose family the step describes",
                      key="prove", hint="Leave `prove` out.")  # fmt: skip
    was, now = view.scratch(), model.alias
    kept = [*_copy(model, was), *(before(was) if before else ())]
    reduced = list[Substep]()
    if after is not None:
        now = view.scratch()
        reduced = [*_copy(model, now), *after(now)]
    count = min(TOKENS, model.sizes.values.get(POSITIONS) or TOKENS)
    compared = Substep("assert", {"logits": {"left": was, "right": now, "tokens": count, **bounds}})
    return Expand((*kept, *steps, *reduced, compared))


def _copy(model: Described, alias: str) -> Iterable[Substep]:
    """The steps that copy all tensors of a model, and its config as it was."""
    yield Substep("copy", {"from": {"alias": model.alias, "name": ".*"}, "to": to(alias, r"\g<0>")})
    yield Substep("config", {"patch": dict(model.place.whole), "alias": alias})
