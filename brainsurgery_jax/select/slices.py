"""Slices of tensors: `[0, 1:5, ::2]` as written (`SliceSpec`) and as resolved against a shape (`Index`)."""

from __future__ import annotations

from typing import NamedTuple

from brainsurgery_jax.select.error import RefError

SYNTAX_HINT = "Write integers, 'start:stop:step' and ':' between brackets, separated by commas: '[2, :, 1:5, ::2]'."


class Range(NamedTuple):
    """One `start:stop:step` component; None where the plan leaves a part out."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        start, stop, step = ("" if part is None else str(part) for part in self)
        return f"{start}:{stop}:{step}" if self.step is not None else f"{start}:{stop}"


class SliceSpec(tuple[int | Range, ...]):
    """The components of a slice as written, one per leading dimension. Its `str` parses to an equal spec."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self))}]"


class Index(NamedTuple):
    """A slice resolved against a source shape, in canonical form: two spellings of one selection are equal.

    Per source dimension: the first index, one past the last index, and the step (1 where at most one index is taken;
    0, 0, 1 where none is). `dropped` are the axes that an integer removes from the result; `source` is the shape.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]
    dropped: tuple[int, ...]
    source: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        counts = map(len, map(range, self.starts, self.stops, self.steps))
        return tuple(count for axis, count in enumerate(counts) if axis not in self.dropped)

    @property
    def full(self) -> bool:
        """Whether the result is the source itself."""
        return not self.dropped and self.shape == self.source

    @property
    def key(self) -> tuple[int | slice, ...]:
        """Return the index for a numpy or JAX array."""
        ranges = map(slice, self.starts, self.stops, self.steps)
        return tuple(one.start if axis in self.dropped else one for axis, one in enumerate(ranges))


def parse_slice(text: str) -> SliceSpec:
    """The components of `[c1, c2, ...]`."""
    if not (text.startswith("[") and text.endswith("]") and len(text) >= 2):
        raise RefError("slice-syntax", f"'{text}' is not a slice: it is not in brackets", SYNTAX_HINT)
    body = text[1:-1]
    if not body.strip():
        return SliceSpec()
    return SliceSpec(_component(part.strip(), at, text) for at, part in enumerate(body.split(","), start=1))


def resolve(spec: SliceSpec | None, shape: tuple[int, ...]) -> Index:
    """Resolve `spec` against a shape, as basic indexing does; None selects everything."""
    parts: tuple[int | Range, ...] = spec or ()
    if len(parts) > len(shape):
        raise RefError(
            "slice-range",
            f"slice {spec} has {len(parts)} component{'s' * (len(parts) != 1)}, but the tensor has {len(shape)} "
            f"dimension{'s' * (len(shape) != 1)} ({list(shape)})",
            f"Leave out the last {len(parts) - len(shape)}; dimensions without a component are taken whole.",
        )
    padded = (*parts, *[Range()] * (len(shape) - len(parts)))
    ranges = [_range(part, size, axis, spec) for axis, (part, size) in enumerate(zip(padded, shape, strict=True))]
    return Index(
        starts=tuple(r.start for r in ranges),
        stops=tuple(r.stop for r in ranges),
        steps=tuple(r.step for r in ranges),
        dropped=tuple(axis for axis, part in enumerate(parts) if isinstance(part, int)),
        source=tuple(shape),
    )


def _component(text: str, at: int, whole: str) -> int | Range:
    try:
        numbers = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        numbers = []
    match numbers:
        case [int(index)]:
            return index
        case [_, _] | [_, _, _]:
            return Range(*numbers)
    found = f"component {at}, '{text}', is neither an integer nor a range" if text else f"component {at} is empty"
    raise RefError("slice-syntax", f"'{whole}' is not a slice: {found}", SYNTAX_HINT)


def _range(part: int | Range, size: int, axis: int, spec: SliceSpec | None) -> range:
    if isinstance(part, int):
        return _single(part, size, axis, spec)
    if part.step is not None and part.step <= 0:
        raise RefError(
            "slice-range",
            f"slice {spec} has step {part.step} in dimension {axis} (size {size})",
            "Steps must be 1 or more; slices cannot reverse an axis.",
        )
    return _canonical(range(size)[slice(*part)])


def _single(index: int, size: int, axis: int, spec: SliceSpec | None) -> range:
    if not -size <= index < size:
        valid = f"Valid indices are {-size} to {size - 1}." if size else "That dimension is empty: no index is valid."
        raise RefError("slice-range", f"slice {spec} asks for index {index} of dimension {axis}, of size {size}", valid)
    start = index % size
    return range(start, start + 1)


def _canonical(taken: range) -> range:
    if not taken:
        return range(0)
    return range(taken[0], taken[-1] + 1, taken.step if len(taken) > 1 else 1)
