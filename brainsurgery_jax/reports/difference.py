"""What differs between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from brainsurgery_jax.comparison import Difference, Figures, TensorDifference
from brainsurgery_jax.documents import Entry, Parts, Record, Table, Text, Value, show_only
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.wording import counted


class Wishes(NamedTuple):
    """What to compare, and how."""

    target: str | None = None
    eps: float = 0.0
    rtol: float = 0.0
    ignore_dtype: bool = False
    quick: bool = False
    memory: str | None = None


def report_difference(found: Difference, wishes: Wishes) -> Record:
    """The tensors and leaves that differ, by how they differ, and how many there are."""
    avals = [one for one in found.differing if _unlike(one, wishes)]
    values = [one for one in found.differing if not _unlike(one, wishes)]
    unlike = (_table("other shape or dtype", map(_row, avals)), _table("other values", map(_row, values)))
    differing = tuple(table for table in unlike if table is not None)
    leaves = ((name, f"{a or 'nothing'} -> {b or 'nothing'}") for name, (a, b) in sorted(found.leaves.items()))
    return Record((
        Entry("same", found.same),
        Entry("left", found.left),
        Entry("right", found.right),
        Entry("eps", wishes.eps),
        Entry("rtol", wishes.rtol),
        Entry("target", wishes.target),
        Entry("ignore_dtype", wishes.ignore_dtype),
        Entry("equal", found.equal),
        Entry("close", found.close),
        Entry("only_left", _sizes(found.only_left), _names(f"only in {found.left}", found.only_left)),
        Entry("only_right", _sizes(found.only_right), _names(f"only in {found.right}", found.only_right)),
        Entry("differing", {one.name: _tensor(one) for one in found.differing},
              Parts(differing, space=1) if differing else None),
        Entry("leaves", {name: {"left": left, "right": right} for name, (left, right) in found.leaves.items()},
              _table("other leaves of the tree", leaves)),
        Entry("notes", list(map(str, found.notes))),
        Entry("diagnostics", list(found.notes)),
        *show_only(Text(_summary(found, avals, values))),
    ), space=1)  # fmt: skip


def _names(title: str, avals: Mapping[str, Aval]) -> Table | None:
    return _table(title, ((name, str(aval)) for name, aval in avals.items()))


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> Table | None:
    """A table; None without rows."""
    return Table(title, listed) if (listed := tuple(rows)) else None


def _unlike(one: TensorDifference, wishes: Wishes) -> bool:
    """Whether shapes differ, or dtypes, where they count."""
    return one.left != one.right and not (wishes.ignore_dtype and one.left.shape == one.right.shape)


def _row(one: TensorDifference) -> tuple[str, ...]:
    kind = str(one.left) if one.left == one.right else f"{one.left} -> {one.right}"
    if (figures := one.figures) is None:
        return one.name, kind
    if not figures.differing:
        return one.name, kind, "no value differs" if not figures.sums.difference else "values within the tolerance"
    left, right = map(_number, figures.values)
    worst = f"largest {figures.largest:.4g} at {list(one.index or ())}: {left} -> {right}"
    ratios = (("relative", figures.relative), ("cosine", figures.cosine))
    told = (f"{name} {value:.{4 if name == 'relative' else 6}g}" for name, value in ratios if value is not None)
    return one.name, kind, _share(figures), worst, ", ".join(told), _nans(figures)


def _share(figures: Figures) -> str:
    return f"{figures.differing:,} of {figures.size:,} differ"


def _nans(figures: Figures) -> str:
    left, right = figures.nans
    return f"NaN: {left:,} -> {right:,}" if left or right else ""


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _summary(found: Difference, avals: list[TensorDifference], values: list[TensorDifference]) -> str:
    counts = [
        (found.close, "within the tolerance"),
        (len(values), "of other values"),
        (len(avals), "of another shape or dtype"),
        (len(found.only_left), "only on the left"),
        (len(found.only_right), "only on the right"),
        (len(found.leaves), "other leaves of the tree"),
    ]
    told = ", ".join(f"{number:,} {what}" for number, what in counts if number)
    equal = counted(found.equal, "tensor")
    return f"{'same' if found.same else 'different'}: {equal} equal{', ' + told if told else ''}"


def _sizes(avals: Mapping[str, Aval]) -> dict[str, Value]:
    return {name: _size(aval) for name, aval in avals.items()}


def _size(aval: Aval) -> dict[str, Value]:
    return {"shape": list(aval.shape), "dtype": aval.dtype.name}


def _tensor(one: TensorDifference) -> dict[str, Value]:
    sides: dict[str, Value] = {"left": _size(one.left), "right": _size(one.right)}
    if (figures := one.figures) is None:
        return sides
    left, right = figures.values or (None, None)
    return sides | {
        "elements": figures.size,
        "differing": figures.differing,
        "largest": figures.largest,
        "index": None if one.index is None else list(one.index),
        "values": None if one.index is None else [left, right],
        "relative": figures.relative,
        "cosine": figures.cosine,
        "nans": list(figures.nans),
    }
