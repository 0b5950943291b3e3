"""`bs.histogram`: how the elements of a tensor are distributed, in a few passes by blocks that hold no tensor whole.

Elements of at most 16 bits are counted by their bits, in one pass that tells everything. Wider ones take a pass for
their extremes and one for the bins, while digits are counted for the quantiles (`numerics/ranks.py`): two passes for 32
bits, four for 64. All counts are exact, and quantiles are those of numpy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from math import isfinite, nan
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.looking.chosen import ask_about, find_numbers, has_numbers
from brainsurgery_jax.numerics.doubles import as_single
from brainsurgery_jax.numerics.moments import PIECE, ValueExtent, find_extent, widen_extent
from brainsurgery_jax.numerics.ranks import count_digits, find_places
from brainsurgery_jax.reduction import Reduction, join_reductions

SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""The shares of the elements for which quantiles are given."""

BINS = 64
MOST_BINS = 1 << 16


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many of the `size` elements of a tensor lie in each bin.

    `counts[i]` are elements x with `edges[i] <= x < edges[i + 1]`, in the last bin also those at its end; `below` and
    `above` are finite elements outside; `nans` and `infs` are counted apart. `quantiles` are by their share in double
    precision, interpolated linearly as numpy does; NaN if an element is.
    """

    size: int
    edges: np.ndarray
    counts: np.ndarray
    below: int
    above: int
    nans: int
    infs: int
    quantiles: Mapping[float, float]

    def __repr__(self) -> str:
        low, high = float(self.edges[0]), float(self.edges[-1])
        return f"<Histogram: {self.size:,} elements in {len(self.counts)} bins from {low:.4g} to {high:.4g}>"


class Bins(NamedTuple):
    """Elements in each bin, below the first and above the last."""

    counts: np.ndarray
    below: int
    above: int


def histogram(
    path: str | os.PathLike[str] | Checkpoint,
    name: str,
    *,
    bins: int = BINS,
    span: tuple[float, float] | None = None,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> Histogram:
    """Count the elements of a tensor in bins of equal width, and find their quantiles. All figures are exact.

    **Arguments**: `path` is that of a file or a folder, or what `bs.open` returns; `name` is that of a tensor. `span`:
    the ends of the first and the last bin (default: the least and the greatest finite element). `memory` is the budget,
    a number of bytes or a text such as "5GB" (default: a quarter of the available memory). `stop`: a `threading.Event`,
    or anything with `is_set`, that ends it early.
    **Returns** a `Histogram`: `edges` [bins + 1], `counts` [bins], and quantiles by their share.
    **Raises** StoreError for what cannot be read, ValueError for a name that is not there, a tensor without real
    numbers, or bad `bins` or `span`, PlanError for a budget that is too small, Stopped.
    **Example**:

    >>> bs.histogram("model.safetensors", "bias", bins=2).counts
    array([2, 2])
    """
    with ExitStack() as opened:
        whole = open_side(path, opened, "histogram")
        find_numbers(whole, name)
        found = histograms_of(whole, [name], bins=bins, span=span, memory=memory, stop=stop)
        whole.source.verify_unchanged()
        return found[name]


def histograms_of(
    chosen: Checkpoint,
    names: Sequence[str],
    *,
    bins: int = BINS,
    span: tuple[float, float] | None = None,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> dict[str, Histogram]:
    """The histograms of several tensors, those without real numbers left out. See `histogram`."""
    _check_bins(bins, span)
    budget, avals = default_budget(host_bytes=memory), chosen.avals
    searches = {name: _Counting(avals[name].size, to_numpy(avals[name].dtype), bins, span)
                for name in names if has_numbers(avals[name])}  # fmt: skip
    while open_ones := {name: one for name, one in searches.items() if not one.done}:
        asked = {name: ask_about(chosen, name, one.next_pass()) for name, one in open_ones.items()}
        found = answers(list(asked.values()), budget, stop)
        for name, question in asked.items():
            open_ones[name].take(found[question])
    return {name: one.result for name, one in searches.items()}


def histograms_on_one_span(
    left: Checkpoint,
    right: Checkpoint,
    names: Sequence[str],
    *,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> tuple[dict[str, Histogram], dict[str, Histogram]]:
    """The histograms of tensors of both checkpoints in the same bins, so that their counts compare: from the least of
    either to the greatest of either. Those without real numbers on both sides are left out. Raises as `histogram`."""
    before, after = (histograms_of(side, names, memory=memory, stop=stop) for side in (left, right))
    for name in before.keys() & after.keys():
        edges = [float(edge) for found in (before, after) for edge in found[name].edges[[0, -1]]]
        span = min(edges), max(edges)
        before |= histograms_of(left, [name], span=span, memory=memory, stop=stop)
        after |= histograms_of(right, [name], span=span, memory=memory, stop=stop)
    shared = [name for name in names if name in before and name in after]
    return {name: before[name] for name in shared}, {name: after[name] for name in shared}


def _check_bins(bins: int, span: tuple[float, float] | None) -> None:
    if not 1 <= bins <= MOST_BINS:
        raise ValueError(f"bins must be between 1 and {MOST_BINS:,}, got {bins}")
    if span is not None and not (all(map(isfinite, span)) and span[0] < span[1]):
        raise ValueError(f"span must be two finite numbers, the smaller one first, got {span}")


class _Counting:
    """What is known of one tensor after some passes."""

    def __init__(self, size: int, dtype: np.dtype, bins: int, span: tuple[float, float] | None):
        self._size, self._dtype, self._bins, self._span = size, dtype, bins, span
        self._place = [share * (size - 1) for share in SHARES]
        self._number, self._digits, self._extent, self._binned = 0, None, None, None
        self._found: Histogram | None = None
        places = sorted({at for place in self._place for at in (int(place), min(int(place) + 1, size - 1))})
        self._places = places
        self._passes = () if dtype.itemsize <= 2 else find_places(dtype, places, lambda elements: elements, None)

    @property
    def done(self) -> bool:
        return self._found is not None

    @property
    def result(self) -> Histogram:
        assert self._found is not None
        return self._found

    def next_pass(self) -> Reduction:
        if not self._passes:
            return Reduction(partial(_count_words, self._dtype.itemsize), np.add, lambda table: table, None)
        digits = self._passes[self._number](self._digits)
        if self._number == 0:
            return join_reductions(_EXTENT, digits)
        if self._number == 1:
            return join_reductions(Reduction(partial(_bin, self._edges()), _add_bins, lambda b: b, None), digits)
        return digits

    def take(self, answer: object) -> None:
        if not self._passes:
            assert isinstance(answer, np.ndarray)
            self._found = self._read_table(answer)
            return
        if self._number < 2:
            assert isinstance(answer, tuple)
            first, self._digits = answer
            if isinstance(first, ValueExtent):
                self._extent = first
            else:
                self._binned = first
        else:
            self._digits = answer
        self._number += 1
        if self._number == len(self._passes):
            self._found = self._conclude(self._digits)

    def _edges(self) -> np.ndarray:
        extent = self._extent
        assert extent is not None
        return _edges(self._span or (extent.least, extent.greatest), self._bins)

    def _conclude(self, elements: object) -> Histogram:
        extent, binned = self._extent, self._binned
        assert extent is not None and binned is not None
        known = None
        if isinstance(elements, np.ndarray):
            known = dict(zip(self._places, elements.astype(np.float64).tolist(), strict=True))
        return self._make(self._edges(), binned, extent, known)

    def _make(
        self, edges: np.ndarray, binned: Bins, extent: ValueExtent, known: Mapping[int, float] | None
    ) -> Histogram:
        pairs = zip(SHARES, self._place, strict=True)
        quantiles = {share: nan if known is None else _interpolate(known, place) for share, place in pairs}
        return Histogram(self._size, edges, *binned, extent.nans, extent.infs, quantiles)

    def _read_table(self, table: np.ndarray) -> Histogram:
        """All from how often each of the 256 or 65,536 bit patterns occurs."""
        words = np.flatnonzero(table).astype(f"u{self._dtype.itemsize}")
        counts, values = table[words], words.view(self._dtype).astype(np.float64)
        order = np.argsort(values, kind="stable")  # NaN last
        values, counts = values[order], counts[order]
        finite = np.isfinite(values)
        nans, infs = int(counts[np.isnan(values)].sum()), int(counts[np.isinf(values)].sum())
        inner = values[finite]
        ends = (float(inner[0]), float(inner[-1])) if inner.size else (nan, nan)
        edges = _edges(self._span or ends, self._bins)
        up_to = np.cumsum(counts)
        known = None if nans else {at: float(values[np.searchsorted(up_to, at, side="right")]) for at in self._places}
        return self._make(edges, _bin_values(edges, inner, counts[finite]), ValueExtent(*ends, nans, infs),
                          known)  # fmt: skip


def _interpolate(known: Mapping[int, float], place: float) -> float:
    low, high, share = known[int(place)], known[min(int(place) + 1, max(known))], place % 1
    if not share or low == high:  # infinities have no difference
        return low
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def _edges(ends: tuple[float, float], bins: int) -> np.ndarray:
    """The edges of bins of equal width. Equal ends are moved apart, and elements without a finite one get 0 to 1."""
    low, high = ends if all(map(isfinite, ends)) else (0.0, 1.0)
    if low == high:
        half = max(0.5, abs(low) / 1024)
        most = float(np.finfo(np.float64).max)
        low, high = max(low - half, -most), min(high + half, most)
    if isfinite(high - low):
        return np.linspace(low, high, bins + 1)
    return 2 * np.linspace(low / 2, high / 2, bins + 1)


def _count_words(itemsize: int, x: np.ndarray) -> np.ndarray:
    """How often each bit pattern occurs in a block."""
    return count_digits(x.view(f"u{itemsize}"), 0, 8 * itemsize)


def _extent(x: np.ndarray) -> ValueExtent:
    pieces = (as_single(x[at : at + PIECE]) for at in range(0, x.size, PIECE))
    return reduce(widen_extent, map(find_extent, pieces))


_EXTENT = Reduction(_extent, widen_extent, lambda found: found, None)


def _bin(edges: np.ndarray, x: np.ndarray) -> Bins:
    found = Bins(np.zeros(len(edges) - 1, np.int64), 0, 0)
    for at in range(0, x.size, PIECE):
        y = x[at : at + PIECE].astype(np.float64)
        finite = np.isfinite(y)
        found = _add_bins(found, _bin_values(edges, y if finite.all() else y[finite], None))
    return found


def _bin_values(edges: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> Bins:
    """Finite numbers in bins, each as often as its weight says."""
    bins = len(edges) - 1
    at = np.searchsorted(edges, y, side="right")
    at[y == edges[-1]] = bins
    table = np.zeros(bins + 2, np.int64)
    if weights is None:
        table += np.bincount(at, minlength=bins + 2)
    else:
        np.add.at(table, at, weights)
    return Bins(table[1:-1], int(table[0]), int(table[-1]))


def _add_bins(a: Bins, b: Bins) -> Bins:
    return Bins(a.counts + b.counts, a.below + b.below, a.above + b.above)
