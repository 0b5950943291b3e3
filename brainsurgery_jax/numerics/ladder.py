"""Which ways to factorize a matrix are tried on the host, in which order; what they cost in time and hold in memory."""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.numerics import leading
from brainsurgery_jax.numerics.factor import OVERSAMPLE, PROBE, SLAB, WIDENED, block_width, residual_rows

SMALL = 256
"""Matrices with a side of at most this are always factorized exactly: nothing is faster."""

_SPACES = (2, 2.5, 3, 3.5, 4, 5, 6, 8)
"""Sizes of the Lanczos space to look at, as multiples of the rank (and some columns more)."""

_RISK = 0.6
"""How much of the certain method's cost may be spent on a quick one that is then rejected."""


class Attempt(NamedTuple):
    """What a rung does: its way to factorize a matrix; `blocks`: how far the Lanczos process goes; `sure`: its result
    is taken, since it is the last; `rebuilt`: the result is the truncated matrix, not its factors."""

    way: str
    blocks: int = 0
    sure: bool = False
    rebuilt: bool = False

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.way}-{self.blocks}" if self.blocks else self.way


def ladder(x: Aval, rank: int, method: str, *, rebuilt: bool = False) -> list[Attempt]:
    """What each rung does to a matrix on the host: the cheapest first, the last one certain."""
    return [attempt._replace(rebuilt=rebuilt) for attempt in _ladder(x, rank, method)]


def _ladder(x: Aval, rank: int, method: str) -> list[Attempt]:
    long, short = max(x.shape), min(x.shape)
    if method == "exact" or short <= SMALL or not x.dtype.is_float:
        return [Attempt("exact", sure=True)]
    if method == "randomized":
        looks = _blocks(long, short, rank, most=inf)
        last = Attempt("lanczos", looks.pop(), sure=True) if looks else Attempt("gram", sure=True)
        return [*(Attempt("lanczos", n) for n in looks), last]
    if _quick_gram_cost(long, short, rank) < _lanczos_cost(long, short, _likely_space(rank)):
        return [Attempt("quick-gram"), Attempt("gram", sure=True)]
    looks = _blocks(long, short, rank, most=_RISK * _gram_cost(long, short))
    return [*(Attempt("lanczos", n) for n in looks), Attempt("gram", sure=True)]


def _blocks(long: int, short: int, rank: int, *, most: float) -> list[int]:
    """How many blocks to go to before each look at the result, at most for that cost."""
    width = block_width(rank)
    counts = sorted({max(3, ceil(ratio * (rank + OVERSAMPLE) / width)) for ratio in _SPACES})
    return [n for n in counts if 2 * n * width <= short and _lanczos_cost(long, short, n * width) <= most]


# Costs in operations of a large product in float32, as measured on one core of a CPU.


def _lanczos_cost(long: int, short: int, space: float) -> float:
    """Two narrow products with the basis, two orthogonalizations, eigenvalues of the small matrix."""
    return 9 * long * short * space + 8 * (long + short) * space**2 + 40 * space**3


def _likely_space(rank: int) -> float:
    """The size of the space that did for most matrices tried."""
    return 3 * (rank + OVERSAMPLE) + 40


def _gram_cost(long: int, short: int) -> float:
    """The Gram matrix in float64 and some of its eigenvectors."""
    return 1.7 * long * short**2 + 11 * short**3


def _quick_gram_cost(long: int, short: int, rank: int) -> float:
    """The Gram matrix in float32 and some of its eigenvectors."""
    return 0.75 * long * short**2 + leading.cost(short, rank)


_PACKED = 2 << 10
"""Bytes that BLAS packs operands into for each row of a product."""


def svd_workspace(x: Aval) -> int:
    """Bytes that the full SVD needs besides the matrix: it, widened, both sets of vectors, and either the matrix once
    more to be overwritten with LAPACK's own workspace, which is larger for tall ones, or a scaled set of vectors."""
    long, short, item = max(x.shape), min(x.shape), max(4, x.dtype.bits // 8)
    widened = item * x.size if x.dtype.bits < 32 else 0
    own = short**2 * (5 if long > 1.5 * short else 3.5)
    vectors = short * sum(x.shape)
    return widened + int(item * (vectors + max(x.size + own, vectors))) + _PACKED // 4 * long


def values_workspace(x: Aval) -> int:
    """Bytes that singular values alone need besides the matrix: it, widened and once more to be overwritten, and
    LAPACK's own workspace, with a triangle for tall matrices."""
    long, short, item = max(x.shape), min(x.shape), max(4, x.dtype.bits // 8)
    widened = item * x.size if x.dtype.bits < 32 else 0
    triangle = short**2 if long > 1.5 * short else 0
    return widened + item * (x.size + triangle + 100 * sum(x.shape)) + _PACKED // 4 * long


def workspace(x: Aval, rank: int, method: str, *, rebuilt: bool) -> int:
    """Bytes that the hungriest rung needs besides the matrix and the result, `rebuilt` in the matrix's shape.

    Products of bfloat16 by XLA fit into what those in float64 take: their slabs are not widened.
    """
    long, short = max(x.shape), min(x.shape)
    rungs = ladder(x, rank, method)
    ways = {rung.way for rung in rungs}
    if "exact" in ways:
        return svd_workspace(x)
    item, sides, rows = max(4, x.dtype.bits // 8), long + short, min(SLAB, long)
    narrow, whole = x.dtype.bits < 32, x.size <= WIDENED
    slabs = 8 * rows * short if narrow and not whole else 0  # a widened one, and the next
    space = max(rung.blocks for rung in rungs) * block_width(rank)
    lanczos = _lanczos_workspace(x, space + PROBE[0] * PROBE[1], block_width(rank), item) + slabs if space else 0
    state = sides * space * item  # of a rung that was rejected
    product = max(2 * short + rows, 3 * short + 64, short + slabs // (8 * short)) * short * 8
    quick = leading.workspace(short, item) + 2 * item * short**2 if "quick-gram" in ways else 0
    gram = max(product + state, quick) if "gram" in ways else 0
    result = min(SLAB, x.shape[0]) * x.shape[1] * item if rebuilt else 0  # the slab that is rounded
    packed = _PACKED * rows + long * min(space, 384) * item
    widened = 4 * x.size if narrow and whole else 0
    factors = (2 * sides + long) * rank * item + 8 * short * rank + result  # found, shared out, and their magnitudes
    return widened + max(x.size, lanczos, gram, factors) + packed + 2 * sides * min(rank, 64) * item


def _lanczos_workspace(x: Aval, space: int, width: int, item: int) -> int:
    """Bytes for a space of so many columns: both bases, the longer ones that replace them, those of the rung before,
    the blocks that are made orthonormal, the small matrix in float64, and the look at the error."""
    sides = sum(x.shape)
    return 3 * sides * space * item + sides * width * (4 * item + 8) + 64 * space**2 + _residual_workspace(x, item)


def _residual_workspace(x: Aval, item: int) -> int:
    """Bytes for a slab of rows of the matrix, twice if it is widened, of its approximation and of their difference."""
    first, second = x.shape if x.shape[0] < x.shape[1] else (max(x.shape), min(x.shape))
    slabs = 4 if x.dtype.bits < 32 and x.size > WIDENED else 2
    return slabs * min(residual_rows((first, second)), first) * second * item
