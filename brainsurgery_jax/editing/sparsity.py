"""How many weights pruning removes, and which: the lowest scores of each group."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.editing.arrays import namespace
from brainsurgery_jax.errors import Refusal


class Sparsity(NamedTuple):
    """What is removed: a share of the entries, or `removed` of every `group` neighbours."""

    share: float
    removed: int = 0
    group: int = 0


def read_pattern(value: object) -> object:
    """`2:4` as text: YAML reads it as the number 124."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value // 60}:{value % 60}"
    return value


PatternText = Annotated[
    str, BeforeValidator(read_pattern), Field(description="`2:4`: two of every four inputs in a row stay")
]
Share = Annotated[float, Field(ge=0, lt=1, description="share of the weights that are removed")]


def read_sparsity(ratio: float | None, pattern: str | None) -> Sparsity:
    """What a step says. Raises Refusal."""
    if (ratio is None) == (pattern is None):
        raise Refusal("key-missing", "give either `ratio` or `pattern`", key="" if ratio is None else "pattern",
                      hint="Write `ratio: 0.5`, or `pattern: '2:4'`.")  # fmt: skip
    if ratio is not None:
        return Sparsity(ratio)
    found = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < kept < group:
        raise Refusal("value-type", f"'{pattern}' is no pattern of sparsity", key="pattern",
                      hint="Write how many stay of how many: `pattern: '2:4'`.")  # fmt: skip
    return Sparsity(0.0, group - kept, group)


def lowest(scores: Array, count: int) -> Array:
    """Whether each entry is among the `count` lowest along the last axis; of equal ones the first are."""
    xp = namespace(scores)
    if count == 0:
        return xp.zeros(scores.shape, np.bool_)
    ordered = np.partition(scores, count - 1, axis=-1) if xp is np else xp.sort(scores, axis=-1)
    edge = ordered[..., count - 1 : count]
    below, level = scores < edge, scores == edge
    left = count - below.sum(axis=-1, keepdims=True, dtype=np.int32)
    return below | (level & (xp.cumsum(level, axis=-1, dtype=np.int32) <= left))
