"""What a step says of names that are not there, or not alone: what to look at, and what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.lower.state import Draft
from brainsurgery_jax.op import Op, TensorOp
from brainsurgery_jax.select import Index, SliceSpec

_ONE_COLON = re.compile(r"(.*[^:]):(\[[-\d:, ]*\])")


def of_pattern(text: str, space: Draft, tokens: Sequence[str] = (), alias: str = "") -> str:
    """What to do about a pattern (that of a list of `tokens`) that was meant otherwise than patterns are read.
    `alias`: what must stand before a name here."""
    plain = text.replace("\\", "")
    if (sliced := _ONE_COLON.fullmatch(text)) is not None:
        return f"A slice is set off by two colons: '{alias}{sliced[1]}::{sliced[2]}'."
    head, bracket, tail = plain.partition("[")
    if bracket and tail.endswith("]") and head in space.names:
        return f"A slice is set off by '::': '{alias}{head}::[{tail}'."
    if any(token in space.names or "." in token for token in tokens):
        return "A list is one name in parts, such as [h, '0', bias]; for several names write 'one|another'."
    if any(plain in name for name in space.names):
        return f"A pattern must match the whole name; for names that contain it write '.*{text}.*'."
    return ""


def of_destination(op: Op | None, key: str) -> str:
    """What to do where an op that writes into tensors finds none under a name."""
    if not isinstance(op, TensorOp) or op.form.dest != "existing" or key not in op.form.writes:
        return ""
    return f"`{op.name}` writes into a tensor that is there: `copy` one to that name first, or use `compute`."


def of_empty(spec: SliceSpec, index: Index) -> tuple[str, str]:
    """What to say of a slice that selects nothing of a tensor that has elements, and what it could select."""
    axis = next(axis for axis, start in enumerate(index.starts) if start == index.stops[axis])
    hint = f"Dimension {axis} has the indices 0 to {index.source[axis] - 1}; a range ends before its second number."
    return f"slice {spec} selects nothing of shape {list(index.source)}", hint


def count(space: Draft) -> str:
    """How many tensors there are."""
    return f"{len(space.names):,} tensor" + "s" * (len(space.names) != 1)


def where(space: Draft) -> str:
    """Where the names can be looked up."""
    if space.origin:
        return f"`brainsurgery-jax inspect {space.origin}` lists the names that it started with."
    return "A step `dump: {}` before this one lists the names."


def refuse_collisions(sources: Sequence[str], names: Sequence[str], key: str) -> None:
    """Refuse templates that give two tensors one name."""
    if len(set(names)) == len(names):
        return
    first: dict[str, str] = {}
    for source, name in zip(sources, names, strict=True):
        if name in first:
            hint = "Keep what tells them apart in a capture: `(...)` in the pattern, `\\1` in the template."
            if re.search(r"\{\d\}", name):
                hint = "A capture is written \\1, not {1}."
            raise Refusal(
                "names-collide", f"'{first[name]}' and '{source}' would both become '{name}'", key=key, hint=hint
            )
        first[name] = source
