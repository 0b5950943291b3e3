"""Steps that change a model and not what it computes, and the proof of it that a plan may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from brainsurgery_jax.protocol import Expand, Substep, View
from brainsurgery_jax.structure.described import Described, to

SAME_LOGITS: Mapping[str, float] = {"max_diff": 1e-3}
"""How far a logit may be from what it was, for the proof."""
SAME_PROBABILITIES: Mapping[str, float] = {"kl": 1e-5}
"""How far the probabilities of the next token may be from what they were, where logits may shift: nats a token."""


TOKENS, POSITIONS = 32, "P"
"""How many tokens are looked at, and the dim that says how many a model has positions for, where it has a table."""


def preserve(
    view: View, model: Described, steps: Iterable[Substep], *, prove: bool, bounds: Mapping[str, float] = SAME_LOGITS
) -> Expand:
    """Steps that keep what a model computes; to prove it, the model is kept as it was, and compared after them."""
    if not prove:
        return Expand(tuple(steps))
    before = view.scratch()
    copied = Substep("copy", {"from": {"alias": model.alias, "name": ".*"}, "to": to(before, r"\g<0>")})
    config = Substep("config", {"patch": dict(model.place.whole), "alias": before})
    count = min(TOKENS, model.sizes.values.get(POSITIONS) or TOKENS)
    compared = Substep("assert", {"logits": {"left": before, "right": model.alias, "tokens": count, **bounds}})
    return Expand((copied, config, *steps, compared))
