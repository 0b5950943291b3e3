"""`diff`: what differs between two checkpoints, for people and as JSON. Exit codes as those of the Unix command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.comparison import Difference, Figures, TensorDifference
from brainsurgery_jax.comparison import diff as compared
from brainsurgery_jax.documents import Document, Parts, Table, Text
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.rendering.data import diagnostic_data, store_error_data
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.store.sizes import parse_size
from brainsurgery_jax.wording import counted

SAME, DIFFERENT, TROUBLE = range(3)


class Wishes(NamedTuple):
    """What to compare, and how."""

    target: str | None = None
    eps: float = 0.0
    rtol: float = 0.0
    ignore_dtype: bool = False
    quick: bool = False
    memory: str | None = None


def diff(left: str, right: str, wishes: Wishes, *, json: bool) -> int:
    """Print the differences. Returns the exit code: 0 equal, 1 different, 2 not comparable."""
    try:
        found = _compare(left, right, wishes)
    except StoreError as error:
        if json:
            show.failure([store_error_data(error)], TROUBLE)
        else:
            show.store_error(error)
        return TROUBLE
    except PlanError as error:
        if json:
            show.failure(map(diagnostic_data, error.diagnostics), TROUBLE)
        else:
            show.diagnostics(error.diagnostics)
        return TROUBLE
    if json:
        show.json(**_data_of(found, wishes))
    else:
        show.diagnostics(found.notes)
        show.result(as_text(_page(found, wishes)))
    return SAME if found.same else DIFFERENT


def _compare(left: str, right: str, wishes: Wishes) -> Difference:
    memory = None
    try:
        if wishes.memory is not None:
            memory = parse_size(wishes.memory)
        return compared(
            left, right, target=wishes.target, eps=wishes.eps, rtol=wishes.rtol, ignore_dtype=wishes.ignore_dtype,
            figures=not wishes.quick, memory=memory,
        )  # fmt: skip
    except ValueError as bad:
        raise typer.BadParameter(str(bad)) from bad


# --- For people -------------------------------------------------------------------------------------------------------


def _page(found: Difference, wishes: Wishes) -> Document:
    avals = [one for one in found.differing if _unlike(one, wishes)]
    values = [one for one in found.differing if not _unlike(one, wishes)]
    leaves = sorted(found.leaves.items())
    tables = (
        Table(f"only in {found.left}", tuple((n, str(a)) for n, a in found.only_left.items())),
        Table(f"only in {found.right}", tuple((n, str(a)) for n, a in found.only_right.items())),
        Table("other shape or dtype", tuple(map(_row, avals))),
        Table("other values", tuple(map(_row, values))),
        Table("other leaves of the tree", tuple((n, f"{a or 'nothing'} -> {b or 'nothing'}") for n, (a, b) in leaves)),
    )
    return Parts((*(table for table in tables if table.rows), Text(_summary(found, avals, values))), space=1)


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


# --- For scripts ------------------------------------------------------------------------------------------------------


def _data_of(found: Difference, wishes: Wishes) -> dict[str, object]:
    return {
        "same": found.same,
        "left": found.left,
        "right": found.right,
        "eps": wishes.eps,
        "rtol": wishes.rtol,
        "target": wishes.target,
        "ignore_dtype": wishes.ignore_dtype,
        "equal": found.equal,
        "close": found.close,
        "only_left": _avals_json(found.only_left),
        "only_right": _avals_json(found.only_right),
        "differing": {one.name: _difference_json(one) for one in found.differing},
        "leaves": {name: {"left": left, "right": right} for name, (left, right) in found.leaves.items()},
        "notes": list(map(str, found.notes)),
        "diagnostics": list(map(diagnostic_data, found.notes)),
    }


def _avals_json(avals: Mapping[str, Aval]) -> dict[str, object]:
    return {name: _aval_json(aval) for name, aval in avals.items()}


def _aval_json(aval: Aval) -> dict[str, object]:
    return {"shape": list(aval.shape), "dtype": aval.dtype.name}


def _difference_json(one: TensorDifference) -> dict[str, Any]:
    sides = {"left": _aval_json(one.left), "right": _aval_json(one.right)}
    if (figures := one.figures) is None:
        return sides
    left, right = figures.values or (None, None)
    return sides | {
        "elements": figures.size,
        "differing": figures.differing,
        "largest": _plain(figures.largest),
        "index": None if one.index is None else list(one.index),
        "values": None if one.index is None else [_plain(left), _plain(right)],
        "relative": figures.relative,
        "cosine": figures.cosine,
        "nans": list(figures.nans),
    }


def _plain(value: Any) -> Any:
    """A value as JSON: NaN, infinity and complex numbers as text."""
    return str(value) if isinstance(value, complex) or value - value != 0 else value
