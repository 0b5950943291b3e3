"""`bs.spectrum`: the singular values of the matrices of a checkpoint, or of how two checkpoints differ."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import nan
from typing import TypedDict

from brainsurgery_jax._lazy import np
from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.dtypes import FLOAT64, Aval
from brainsurgery_jax.engine.compute.folds import question_of
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.numerics.ladder import values_workspace, workspace
from brainsurgery_jax.numerics.math import widen
from brainsurgery_jax.numerics.spectrum import effective_rank, has_spectrum, measure_spectrum
from brainsurgery_jax.numerics.top_values import top_values
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.rendering.notebook import as_html, draw_curve, show_in_treescope
from brainsurgery_jax.summaries import VALUES


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of a matrix of `shape`, falling, in double precision; NaN if an element is not finite.

    `values` are all of them, or the largest, which hold the share `captured` of the squared norm. Then the norm of what
    they leave is larger than that of the best approximation of this rank by a share of at most `excess`.
    """

    shape: tuple[int, ...]
    values: np.ndarray
    captured: float = 1.0
    excess: float = 0.0

    def __repr__(self) -> str:
        if not self.is_finite:
            return f"<Spectrum of {list(self.shape)}: not finite>"
        told = f"effective rank {self.effective_rank:.1f}" if self.is_complete else f"captured {self.captured:.4g}"
        return f"<Spectrum of {list(self.shape)}: {len(self.values)} values, largest {self.values[0]:.4g}, {told}>"

    __treescope_repr__ = show_in_treescope

    def _repr_html_(self) -> str:
        """What a notebook shows: ranks, and the captured energy against the rank."""
        if not self.is_finite:
            return as_html(repr(self)[1:-1])
        ranks = ((share, self.rank_of(share)) for share in (0.9, 0.95, 0.99))
        facts = [f"rank {rank:,} captures {share:.0%}" for share, rank in ranks if rank is not None]
        curve = draw_curve([0.0, *self.energy.tolist()], "captured energy against rank")
        return as_html(repr(self)[1:-1], facts, picture=curve)

    @property
    def is_complete(self) -> bool:
        """Whether all singular values are there."""
        return len(self.values) == min(self.shape)

    @property
    def is_finite(self) -> bool:
        """Whether all elements of the matrix are."""
        return not np.isnan(self.values[0])

    @property
    def energy(self) -> np.ndarray:
        """The share of the squared norm that the best approximation of rank 1, 2, ... captures; 1 for zeros."""
        largest = self.values[0] if self.values[0] else 1.0
        squares = np.cumsum(np.square(self.values / largest))
        return squares / squares[-1] * self.captured if squares[-1] else np.ones_like(squares)

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the singular values as shares of their sum (Roy and Vetterli, 2007); NaN
        where not all of them are known."""
        return effective_rank(self.values) if self.is_complete or not self.values[0] else nan

    def rank_of(self, energy: float) -> int | None:
        """The least rank that captures a share of the energy, 0 for a matrix of zeros; None if it is not finite, or if
        more values are needed than were computed."""
        if not self.is_finite or (not self.is_complete and energy > self.energy[-1]):
            return None
        return 1 + int(np.sum(self.energy[:-1] < energy)) if self.values[0] else 0


class TopParams(TypedDict):
    """How many singular values are wanted."""

    count: int


def _top_aval(avals: Avals, params: TopParams) -> Avals:
    return (Aval((params["count"] + 2,), FLOAT64),)


def _top_workspace(avals: Avals, params: TopParams) -> int:
    quick = workspace(avals[0], params["count"], "auto", rebuilt=False)
    return max(quick, values_workspace(avals[0])) + 8 * avals[0].size * (1 + len(avals))


@kernel(result=_top_aval, host=lambda avals, params: True, workspace=_top_workspace)
def measure_top(x: np.ndarray, *subtracted: np.ndarray, count: int) -> np.ndarray:
    """The largest singular values of a matrix, less another one if it is given, what they capture, and the excess
    [count + 2]; NaN if not finite."""
    wide = widen(x)
    for y in subtracted:
        wide = wide - widen(y)
    if not np.isfinite(wide).all():
        return np.full(count + 2, np.nan)
    found = top_values(wide, count)
    return np.array([*found.values, found.captured, found.excess])


def spectrum(
    path: str | os.PathLike[str] | Checkpoint,
    other: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    target: str | list[str] | None = None,
    most: int | None = None,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> Mapping[str, Spectrum]:
    """Compute the singular values of the matrices of a checkpoint, or of their differences from those of another.

    **Arguments**: `path` and `other` are those of files or folders, or what `bs.open` returns. `target` selects names.
    With `other` the matrices are `other - path`, for names that both have, with equal shapes. With `most` only that
    many are computed, the largest, with a bound on what they miss; this is quicker. `memory` is the budget, a number of
    bytes or a text such as "5GB" (default: a quarter of the available memory). `stop`: a `threading.Event`, or anything
    with `is_set`, that ends it early.
    **Returns** a `Spectrum` by name, in state-dict order, for real floating-point matrices; other tensors are left out.
    Matrices narrower than float32 are widened to it first.
    **Raises** StoreError for what cannot be read, ValueError for a bad `target` or `most`, or if no matrix is chosen,
    PlanError for a budget that is too small, Stopped.
    **Example**:

    >>> list(bs.spectrum("model.safetensors"))
    ['layers.0.w', 'layers.1.w']
    """
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    with ExitStack() as opened:
        sides = [open_side(side, opened, "spectrum") for side in ((path,) if other is None else (other, path))]
        chosen = [side if target is None else side.select(target) for side in sides]
        if not (found := spectra_of(chosen, memory, most=most, stop=stop)):
            raise ValueError(_describe_absence(sides, chosen[-1], target))
        for side in sides:
            side.source.verify_unchanged()
        return found


def spectra_of(
    chosen: list[Checkpoint],
    memory: int | str | None = None,
    names: Collection[str] | None = None,
    *,
    most: int | None = None,
    stop: StopSignal = NEVER,
) -> dict[str, Spectrum]:
    """The spectra of the matrices of a checkpoint, or of the first less the second; only of some names if these are
    given, and of each only the `most` largest values. Matrices that not all have are left out."""
    avals = [side.avals for side in chosen]
    graph = Graph()

    def measure(name: str) -> Expr:
        parts = zip(chosen, avals, strict=True)
        leaves = tuple(graph.leaf(side.source, side.prefix + name, known[name]) for side, known in parts)
        if most is None or most >= min(known_shape(name)):
            return graph.call(measure_spectrum, leaves, {})
        return graph.call(measure_top, leaves, {"count": most})

    def known_shape(name: str) -> tuple[int, ...]:
        return avals[-1][name].shape

    wanted = [name for name in chosen[-1] if (names is None or name in names) and _is_matrix(avals, name)]
    asked = {name: question_of((measure(name),), VALUES) for name in wanted}
    found = answers(list(asked.values()), default_budget(host_bytes=memory), stop)
    return {name: _read(known_shape(name), found[question], most) for name, question in asked.items()}


def _read(shape: tuple[int, ...], found: np.ndarray, most: int | None) -> Spectrum:
    if most is None or most >= min(shape):
        return Spectrum(shape, found)
    return Spectrum(shape, found[:most], float(found[most]), float(found[most + 1]))


def _describe_absence(sides: list[Checkpoint], chosen: Checkpoint, target: str | list[str] | None) -> str:
    near = did_you_mean(target, sides[-1]) if isinstance(target, str) and not chosen else ""
    shared = f" that {sides[0].path} also has, in that shape," if len(sides) > 1 else ""
    matching = "was found" if target is None else f"matches '{target}'"
    return f"no floating-point matrix of {sides[-1].path}{shared} {matching}.{near}"


def _is_matrix(sides: list[Mapping[str, Aval]], name: str) -> bool:
    """Whether all sides have a matrix of that name and one shape that can be factorized."""
    return all(name in side for side in sides) and has_spectrum(*(side[name] for side in sides))
