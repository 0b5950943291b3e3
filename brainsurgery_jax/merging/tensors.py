"""What methods are built of: elementwise passes, tensors in one dtype, and small values spread over a tensor.

Tensors go by in blocks: nothing here holds one whole. On numpy every operation is rounded by itself, so that neither
budget nor threads change a bit. There `x += y` writes to `x`, which takes two thirds of the time of a new array; on
traced arrays it makes a new one. So only arrays that a function has made itself are updated, never its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ParamSpec, TypeVar

from brainsurgery_jax._lazy import Array, jnp, np
from brainsurgery_jax.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Aval, DType, to_numpy
from brainsurgery_jax.index.parts import PIECE, AxisCut, Cuts
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.numerics.math import kind, on_host, seal, to_float64, wide, widen
from brainsurgery_jax.numerics.rounding import cast_to, round_to
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.ops.sets import entry
from brainsurgery_jax.protocol import Reduction, TensorExpr, View

P = ParamSpec("P")
R = TypeVar("R")

Params = Mapping[str, Any]
"""The keys of a kernel by name; each kernel has its own."""

ON_THE_WAY = 8
"""Arrays that an elementwise pass makes on the way, besides one for each operand."""


def anywhere(avals: Avals, params: Params) -> bool:
    """That a kernel also runs on numpy arrays."""
    return True


def result_aval(avals: Avals, params: Params) -> Avals:
    """The shape of the first operand, in the dtype that is asked for."""
    return (Aval(avals[0].shape, params["dtype"]),)


def _space(avals: Avals, params: Params) -> int:
    """Bytes of a piece: every operand widened, and some results."""
    return sum(a.size * max(4, a.dtype.bits // 8) for a in avals) + ON_THE_WAY * avals[0].size * max(
        4, *(a.dtype.bits // 8 for a in avals)
    )


def _before_rounding(avals: Avals, params: Params) -> DType | None:
    return FLOAT32 if params["exact"] and params["dtype"] in (BFLOAT16, FLOAT16) else None


def by_element(name: str, *, guarded: bool = False, refusal: str = "") -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make an elementwise kernel of a function that returns a tensor of its parameter `dtype`, if it is `guarded` with
    whether it is accepted; else `refusal` stops the run."""
    return kernel(
        name,
        elementwise=True,
        result=result_aval,
        host=anywhere,
        workspace=_space,
        before_rounding=_before_rounding,
        guarded=guarded,
        refusal=refusal,
    )


PART = 1 << 20
"""Elements of a part. Python takes as long for a part of any length; of twice as many, the tensors of three models that
two threads compute do not fit into a third cache of 32 MB."""


def _parts(avals: Avals, params: Params) -> Cuts:
    """Runs of at most so many elements, each of the same elements of all tensors; the values are needed whole."""
    shape, tensors = avals[0].shape, len(avals) - params["values"]
    cuts, rest = list[AxisCut](), prod(shape)
    for axis, size in enumerate(shape):
        rest //= size
        step = max(1, min(size, PART // rest)) if rest <= PART else 1
        cuts.append(AxisCut(axis, size, step, (axis,) * tensors + (None,) * params["values"]))
        if rest <= PART:
            break
    return tuple(cut for cut in cuts if cut.units > 1)


def _part_space(avals: Avals, params: Params) -> int:
    return 8 * (len(avals) + ON_THE_WAY) * min(PIECE, avals[0].size)


def by_values(
    name: str, alike: Callable[[Avals, Params], bool] = lambda avals, params: False
) -> Callable[[Callable[..., Array]], Kernel[..., Array]]:
    """Make a kernel of an elementwise function `(tensors, values, static) -> tensor of the parameter dtype` on tensors
    of one shape and small values, which come after them and are as many as the parameter `values` says. `alike`: see
    `Kernel`."""

    def decorate(fn: Callable[..., Array]) -> Kernel[..., Array]:
        def of_parts(*operands: Array, values: int, **static: Any) -> Array:
            count = len(operands) - values
            return fn(operands[:count], operands[count:], **static)

        return kernel(
            name,
            result=result_aval,
            host=anywhere,
            workspace=_part_space,
            parts=_parts,
            needs_whole=lambda avals, params: params["values"],
            before_rounding=_before_rounding,
            alike=alike,
        )(of_parts)

    return decorate


def are_plain(avals: Avals, params: Params) -> bool:
    """That a kernel made `by_values` computes in float32, of tensors in bfloat16 or float32: what `numerics.ordinary`
    is made for."""
    tensors = avals[: len(avals) - params["values"]]
    return params["exact"] and {params["dtype"], *(a.dtype for a in tensors)} <= {BFLOAT16, FLOAT32}


@kernel(
    "cast", result=result_aval, elementwise=True, host=anywhere, noop=lambda a, params: a[0].dtype == params["dtype"]
)
def in_dtype(x: Array, *, dtype: DType) -> Array:
    """A tensor in another float dtype."""
    return cast_to(x, dtype)[0]


def namespace(x: Array) -> Any:
    """The array API that an array is of."""
    return np if on_host(x) else jnp


def widened(xs: Sequence[Array], exact: bool) -> tuple[Array, ...]:
    """Tensors in the dtype that is computed in: at least float32, or (not `exact`) their own."""
    return tuple(map(widen, xs)) if exact else tuple(xs)


def kept_where(mask: Array, x: Array) -> Array:
    """A tensor with zeros where a mask is false. On numpy by bits, which is some times as fast as by choice."""
    if not on_host(x) or not on_host(mask) or x.dtype.itemsize not in (4, 8):
        return namespace(x).where(mask, x, constant_of(0, x))
    ones = np.negative(np.asarray(mask).view(np.int8))  # short as long as it can be: -1 has all bits, however long
    bits = ones.astype(f"i{x.dtype.itemsize}")
    return np.bitwise_and(np.asarray(x).view(bits.dtype), bits, out=bits).view(x.dtype)


def constant_of(value: float, like: Array) -> Array:
    """A number in the dtype of an array."""
    return np.asarray(value, like.dtype)


def times(x: Array, number: float) -> Array:
    """A tensor times a number, which is not rounded to short floats before; rounded once."""
    wide = widen(x)
    return round_to(wide * constant_of(number, wide), x.dtype)


def total(xs: Sequence[Array]) -> Array:
    """The sum of some tensors, element by element; of short floats rounded once."""
    first, *others = map(widen, xs)
    if others and first is xs[0]:
        first = first + others.pop(0)
    return _add_up(first, others, xs[0])


def accumulate(xs: Sequence[Array]) -> Array:
    """The same of arrays that were made for it: the first may be overwritten."""
    first, *others = map(widen, xs)
    return _add_up(first, others, xs[0])


def _add_up(first: Array, others: Sequence[Array], like: Array) -> Array:
    for x in others:
        first += x
    return round_to(first, like.dtype)


def multiply(x: Array, factor: Array) -> Array:
    """`x * factor`, in the place of `x`, which was made for it. Rounded before anything is added to it, if it is not
    exact."""
    if not on_host(x):
        return x * factor if _is_exact(factor) and x.dtype.itemsize >= 4 else seal(x * factor)
    x *= factor
    return x


def _is_exact(factor: Array) -> bool:
    """Whether a factor is known to be a positive power of two: products with it need no rounding. With a negative one
    XLA makes `-(x + y)` of `-x - y`, and 0 gets another sign."""
    return on_host(factor) and float(np.frexp(factor)[0]) == 0.5


def scale_widened(x: Array, given: Array, factor: Array) -> Array:
    """`x * factor` of what `given` was widened to: in its place if it was made for that."""
    return x * factor if x is given and on_host(x) else multiply(x, factor)


def magnitude(x: Array) -> Array:
    """`abs(x)`, in the place of `x`, which was made for it."""
    return np.abs(x, out=x) if on_host(x) and x.ndim else abs(x)


def add_to(x: Array, change: Array) -> Array:
    """`x + change`, in the place of `change`, which was made for it. NaN keeps the bits that this order gives it."""
    if on_host(x) and on_host(change) and change.ndim:
        return np.add(x, change, out=change)
    return x + change


def double(x: Array) -> Array:
    """A float of any width in float64."""
    if on_host(x):
        return x.astype(np.float64)
    return x if x.dtype == np.float64 else to_float64(x)


def rounding(work: DType | None) -> Callable[[Array], Array]:
    """What is done to numbers in double precision on the way: nothing, or (`work`) they are rounded to a dtype."""
    return (lambda x: x) if work is None else lambda x: double(rounded(x, work))


def rounded(x: Array, dtype: DType) -> Array:
    """A result in the dtype of the merged tensor."""
    return round_to(x, to_numpy(dtype))


def common_work(dtypes: Sequence[DType]) -> DType:
    """The dtype in which tensors of some float dtypes are computed together: float32, or float64 if one is that."""
    return max(map(wide, dtypes), key=lambda dtype: dtype.bits)


def spread(view: View, values: TensorExpr, at: int, like: Aval) -> TensorExpr:
    """Number `at` of a vector of values at every element of a tensor, in its dtype."""
    one = view.apply(entry, view.apply(in_dtype, values, dtype=like.dtype), axis=0, at=at)
    return view.apply(broadcast, one, shape=like.shape)


# --- Small values of large tensors ------------------------------------------------------------------------------------

SLAB = 1 << 17
"""Elements of which a sum is taken at a time, so that copies in double precision stay small."""

Step = Callable[..., Array]
"""The sums that elements of some tensors contribute [k]: `(xs, static) -> sums`."""


def sums(
    name: str, step: Step, finish: Callable[..., Array], length: Callable[[Avals, Params], int]
) -> Kernel[Any, Array]:
    """A kernel that adds up what `step(xs, static)` makes of some tensors of one shape, a float64 vector; its result is
    `finish(sums, static)`, a float64 vector [length]. One pass over the tensors, which go by in blocks."""

    def of_whole(*xs: Array, **static: Any) -> Array:
        return finish(step([x.reshape(-1) for x in xs], static), static)

    def passes(avals: Avals, params: Params) -> tuple[Callable[[Any], Reduction], ...]:
        def block(*xs: Array) -> Array:
            with np.errstate(all="ignore"):
                parts = (step([x[at : at + SLAB] for x in xs], params) for at in range(0, len(xs[0]), SLAB))
                return sum(parts, np.zeros(()))

        def conclude(found: Array) -> Array:
            with np.errstate(all="ignore"):
                return np.asarray(finish(found, params), np.float64)

        empty = np.zeros(length(avals, params))
        return (lambda _: Reduction(block, np.add, conclude, empty),)

    def result(avals: Avals, params: Params) -> Avals:
        return (Aval((length(avals, params),), FLOAT64),)

    return kernel(name, result=result, host=anywhere, fold=passes)(of_whole)


def gram(name: str, finish: Callable[..., Array], length: Callable[[Avals, Params], int]) -> Kernel[Any, Array]:
    """A kernel on the inner products of some tensors, or with the parameter `base` of their differences to the first:
    `finish(products [n, n], static)` gives its result. `work`: the dtype to which they are then rounded, if any."""

    def step(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
        vectors = deltas(xs, static["exact"]) if static["base"] else xs
        return namespace(xs[0]).stack(inner_products(vectors, double_sums=static.get("work") is not None))

    def conclude(found: Array, static: Mapping[str, Any]) -> Array:
        xp, n = namespace(found), int((np.sqrt(8 * found.shape[0] + 1) - 1) / 2)
        place = {(i, j): at for at, (i, j) in enumerate((i, j) for i in range(n) for j in range(i, n))}
        rows = [xp.stack([found[place[min(i, j), max(i, j)]] for j in range(n)]) for i in range(n)]
        return finish(xp.stack(rows), static)

    return sums(name, step, conclude, length)


ROW = 1 << 13
"""Elements of which BLAS takes an inner product: of more than 10,000 OpenBLAS makes as many sums as it has threads."""

SHORT_ROW = 1 << 9
"""The same where sums are in float32: an inner product of a slab is exact to about 2e-8."""

TELLING = 2.0**-100
"""Squared norms of slabs from here on do not depend on products below 2^-126, which float32 cannot tell apart."""


def inner_products(vectors: Sequence[Array], *, double_sums: bool) -> list[Array]:
    """The inner products of each vector with itself and all that follow, in float64.

    On numpy, products of two floats of 16 bits are exact in float32. A few hundred of them are added in it, if they are
    in its range, which takes half of the time; not if `double_sums` are asked for.
    """
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i, len(vectors))]
    if not double_sums and all(on_host(x) and kind(x) == "float" and x.dtype.itemsize == 2 for x in vectors):
        short = [widen(x) for x in vectors]
        products = [inner_product(short[i], short[j], SHORT_ROW) for i, j in pairs]
        if all(TELLING <= product < np.inf for product, (i, j) in zip(products, pairs, strict=True) if i == j):
            return products
    wide = [double(x) for x in vectors]
    return [inner_product(wide[i], wide[j]) for i, j in pairs]


def inner_product(x: Array, y: Array, row: int = ROW) -> Array:
    """The inner product of two vectors in float64, the sums of rows in their own dtype. Whatever the number of threads,
    its bits are the same."""
    if not on_host(x) or not on_host(y):
        return jnp.einsum("i,i->", x, y)
    whole = x.size // row * row
    rows = np.vecdot(x[:whole].reshape(-1, row), y[:whole].reshape(-1, row))
    return rows.sum(dtype=np.float64) + np.vecdot(x[whole:], y[whole:])


def base_and_deltas(xs: Sequence[Array], exact: bool) -> tuple[Array, list[Array]]:
    """The first tensor, and the differences of the others to it, in at least float32 or (not `exact`) in their own
    dtype. The differences are new arrays."""
    (base,) = widened(xs[:1], exact)
    return base, [subtract(x, base, exact) for x in xs[1:]]


def deltas(xs: Sequence[Array], exact: bool) -> list[Array]:
    """The differences alone."""
    return base_and_deltas(xs, exact)[1]


def subtract(x: Array, base: Array, exact: bool) -> Array:
    """`x - base` as a new array; `base` is widened."""
    (wide,) = widened((x,), exact)
    if wide is x:
        return wide - base
    wide -= base
    return wide
