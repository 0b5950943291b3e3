"""Exact order statistics by one reading of tensors that go by in blocks, with or without a sign.

A sample tells about where the element at a place of the sorted order lies; then what is below that window is counted,
and what is in it is kept, few elements. Where a window missed its place, or is too wide to be kept by single numbers,
the next reading looks at a better one: so the answer never depends on the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from brainsurgery_jax._lazy import np

SAMPLE = 1 << 15
"""Elements of a sample, at least; tensors of no more are kept whole."""

SPARSE = 61
"""The largest step between the elements of a sample: no divisor of a usual length of rows."""

MARGIN = 0.02
"""The share of elements by which a window reaches beyond its place at most, to both sides; half of it in the middle."""

SURE = 5
"""Standard deviations of the estimate that a window reaches, if that is less than the margin."""

CHUNKS = 32
"""Parts of a sample that are compared. Elements of a row are alike, so a sample of few rows says less than its size."""

DEVIATIONS = 2.5
"""Standard deviations of the estimate that a window reaches, where single numbers can still be kept."""

BUCKETS = 21
"""Bits of the numbers that are told apart in a window."""

SHORT = 1 << 16
"""Fewer numbers are sorted to count them."""

LOOSE = 1 << 21
"""Elements of a window that are kept one by one before equal ones are counted."""


class KeyWindow(NamedTuple):
    """Keys from `low` on, `width` of them, told apart by all but their last `shift` bits. `sure`: the place that it is
    for lies in it."""

    low: int
    width: int
    shift: int = 0
    sure: bool = False

    @property
    def found(self) -> bool:
        """Whether it is the key itself."""
        return self.sure and self.width == 1


class Pile(NamedTuple):
    """Numbers, ascending, and how often each occurs; and others that are not counted yet, `waiting` in all."""

    numbers: np.ndarray
    counts: np.ndarray
    loose: tuple[np.ndarray, ...] = ()
    waiting: int = 0


class Near(NamedTuple):
    """What is known of elements: how many are below each window, what is in it, the least and the greatest key, and how
    many are not zero."""

    below: tuple[int, ...]
    inside: tuple[Pile, ...]
    least: int
    most: int
    nonzero: int = 0


def sample_step(size: int) -> int:
    """The step between the elements of a sample of a tensor."""
    return min(SPARSE, size // SAMPLE | 1)


def keys_of(x: np.ndarray) -> np.ndarray:
    """Integers in the order of floats, -0 before 0; NaN is beyond infinity. Of floats without a sign, their bits."""
    keys = x.view(f"i{x.itemsize}")
    return _turn(keys) if keys.size and keys.min() < 0 else keys


def _turn(bits: np.ndarray) -> np.ndarray:
    """The keys of floats some of which have a sign."""
    keys = bits >> np.asarray(8 * bits.itemsize - 1, bits.dtype)
    keys &= np.iinfo(bits.dtype).max
    keys ^= bits
    return keys


def value_of(key: int, dtype: np.dtype) -> np.floating:
    """The float that has a key."""
    bits = np.asarray(key, f"i{dtype.itemsize}")
    return (bits if key >= 0 else bits ^ np.iinfo(bits.dtype).max)[None].view(dtype)[0]


def is_nan(key: int, dtype: np.dtype) -> bool:
    """Whether a key is that of a NaN."""
    infinity = int(keys_of(np.array([np.inf], dtype))[0])
    return key > infinity or key < -infinity - 1


def windows_of(sample: np.ndarray, places: Sequence[int], size: int) -> tuple[KeyWindow, ...]:
    """The windows for places in the order of `size` elements, of some of these."""
    keys = keys_of(sample)
    shares = [(place + 0.5) / size for place in places]
    middles = [min(int(share * keys.size), keys.size - 1) for share in shares]
    ranked, unseen = np.partition(keys, middles), max(0.0, 1 - keys.size * sample_step(size) / size)
    ends = []
    for share, middle in zip(shares, middles, strict=True):
        spread = float(np.sqrt(share * (1 - share)))
        estimate = _deviation(keys, ranked[middle]) * unseen**0.5
        near = min(MARGIN * spread, SURE * max(spread / keys.size**0.5, estimate))
        ends += [_ends(keys.size, share, reach) for reach in (near, max(near, DEVIATIONS * estimate))]
    if within := sorted({at for pair in ends for at in pair if 0 <= at < keys.size}):
        ranked.partition(within)
    found = []
    for inner, outer in zip(ends[::2], ends[1::2], strict=True):
        (low, high), (least, most) = (_keys_at(ranked, *pair) for pair in (inner, outer))
        room = max(0, (1 << BUCKETS) - (high - low + 1)) // 2  # more would leave a window too wide for single numbers
        found.append(_window(max(least, low - room), min(most, high + room)))
    return tuple(found)


def _ends(count: int, share: float, reach: float) -> tuple[int, int]:
    """The places in the order of `count` keys that are a share of them below and above a place."""
    return int(share * count - reach * count - 8), int(share * count + reach * count + 8)


def _keys_at(ranked: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """The keys at two places, or the least and the greatest that there may be."""
    limits = np.iinfo(ranked.dtype)
    low = int(ranked[first]) if first >= 0 else int(limits.min)
    return low, int(ranked[last]) if last < ranked.size else int(limits.max)


def _deviation(keys: np.ndarray, middle: np.integer) -> float:
    """The standard deviation of the share of keys below one of them, from how much parts of the sample differ."""
    shares = [np.count_nonzero(chunk < middle) / chunk.size for chunk in np.array_split(keys, CHUNKS) if chunk.size]
    return float(np.std(shares, ddof=1)) / len(shares) ** 0.5 if len(shares) > 1 else 0.0


def _window(low: int, high: int, *, sure: bool = False) -> KeyWindow:
    width = high - low + 1
    return KeyWindow(low, width, max(0, (width - 1).bit_length() - BUCKETS), sure)


@cache
def _nothing() -> Pile:
    """A pile of no numbers, made when it is needed: a module constant would import numpy."""
    return Pile(np.zeros(0, np.uint64), np.zeros(0, np.int64))


# --- A reading --------------------------------------------------------------------------------------------------------


def look_near(x: np.ndarray, windows: Sequence[KeyWindow]) -> Near:
    """What some elements, at least one, say of windows; those that are found are not looked at."""
    keys = x.view(f"i{x.itemsize}")
    most = int(keys.view(f"u{x.itemsize}").max())
    least = 0
    if most > np.iinfo(keys.dtype).max:  # some have a sign
        keys = _turn(keys)
        least, most = int(keys.min()), int(keys.max())
    made = [(0, _nothing()) if w.found else _look(keys, w) for w in windows]
    return Near(tuple(n for n, _ in made), tuple(p for _, p in made), least, most)


def _look(keys: np.ndarray, window: KeyWindow) -> tuple[int, Pile]:
    low = np.asarray(window.low, keys.dtype)
    reached = keys >= low
    below = keys.size - int(np.count_nonzero(reached))
    if window.width == 1:
        count = int(np.count_nonzero(keys == low))
        return below, Pile(np.zeros(1, np.uint64), np.array([count]))
    reached ^= keys > np.asarray(window.low + window.width - 1, keys.dtype)
    (inside,) = reached.nonzero()
    if not inside.size:
        return below, _nothing()
    unsigned = np.dtype(f"u{keys.itemsize}")
    numbers = (keys[inside] - low).view(unsigned)
    if window.shift:
        numbers >>= np.asarray(window.shift, unsigned)
    return below, _nothing()._replace(loose=(numbers,), waiting=numbers.size)


def _count(numbers: np.ndarray) -> Pile:
    """A pile of some numbers, below `1 << BUCKETS`. Of many a table of all is ten times as fast as a sort."""
    if numbers.size < SHORT:
        own, counts = np.unique(numbers, return_counts=True)
        return Pile(own.astype(np.uint64), counts)
    return _pile_of(np.bincount(numbers.astype(np.intp)))


def _pile_of(table: np.ndarray) -> Pile:
    """The numbers that occur, from how often each does."""
    (own,) = (table != 0).nonzero()  # numpy finds places of booleans many times as fast as those of integers
    return Pile(own.astype(np.uint64), table[own])


def join_near(a: Near, b: Near) -> Near:
    """What is known of both."""
    return Near(
        tuple(x + y for x, y in zip(a.below, b.below, strict=True)),
        tuple(_together(x, y) for x, y in zip(a.inside, b.inside, strict=True)),
        min(a.least, b.least), max(a.most, b.most), a.nonzero + b.nonzero,
    )  # fmt: skip


def _together(a: Pile, b: Pile) -> Pile:
    loose, waiting = (*a.loose, *b.loose), a.waiting + b.waiting
    if waiting > LOOSE:
        b, loose, waiting = _add(b, _count(np.concatenate(loose))), (), 0
    return _add(a, b)._replace(loose=loose, waiting=waiting)


def _add(a: Pile, b: Pile) -> Pile:
    """The counts of two piles. Their numbers are below `1 << BUCKETS`: a table of all is faster than a sort."""
    if not a.numbers.size or not b.numbers.size:
        return a if a.numbers.size else b
    table = np.zeros(int(max(a.numbers[-1], b.numbers[-1])) + 1, np.int64)
    for pile in (a, b):
        table[pile.numbers.astype(np.intp)] += pile.counts
    return _pile_of(table)


def narrow(windows: Sequence[KeyWindow], places: Sequence[int], near: Near) -> tuple[KeyWindow, ...]:
    """Better windows for places after a reading of all elements, or those that were found."""
    return tuple(
        w if w.found else _narrow(w, place, near, at) for at, (w, place) in enumerate(zip(windows, places, strict=True))
    )


def _narrow(window: KeyWindow, place: int, near: Near, at: int) -> KeyWindow:
    pile, own = near.inside[at], place - near.below[at]
    if own < 0:
        return _window(near.least, window.low - 1, sure=True)
    if own >= int(pile.counts.sum()) + pile.waiting:
        return _window(window.low + window.width, near.most, sure=True)
    number = window.low + (_number_at(pile, own) << window.shift)
    return _window(number, number + (1 << window.shift) - 1, sure=True)


def _number_at(pile: Pile, place: int) -> int:
    """The number at a place of a pile."""
    whole = _add(pile, _count(np.concatenate(pile.loose))) if pile.loose else pile
    return int(whole.numbers[int(np.searchsorted(np.cumsum(whole.counts), place, side="right"))])
