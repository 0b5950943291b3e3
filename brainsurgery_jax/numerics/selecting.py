"""Elements at a place of the sorted order, of traced tensors: their bits are found from the highest to the lowest.

Each step counts the elements below three numbers, which gives two bits, and nothing is sorted: XLA takes 8 s to sort 16
million numbers on a CPU, and a fraction of a second for the counts. The three are one reduction, which XLA compiles to
code several times as fast as that of a single sum. The bits are those that numpy's partition finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from brainsurgery_jax._lazy import Array, jax, jnp, np
from brainsurgery_jax.numerics.math import kind
from brainsurgery_jax.numerics.rounding import round_once


def select_at(x: jax.Array, place: int, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The elements at `place` and at `place + 1` (or the last) of the sorted order over some axes, which are kept.

    -0 comes before 0. Where there is NaN, both are NaN. Equal elements share the gradient.
    """
    if kind(x) == "float" and x.dtype.itemsize == 8:  # TPUs have no bits of float64 to look at
        return jax.lax.platform_dependent(
            x, tpu=lambda x: _by_sorting(x, place, axes), default=lambda x: _by_bits(x, place, axes)
        )
    return _by_bits(x, place, axes)


def _by_sorting(x: jax.Array, place: int, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    rows = jnp.sort(_as_rows(jax.lax.stop_gradient(x), axes), axis=-1)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    nan = jnp.isnan(rows[..., -1])
    low, high = (jnp.where(nan, np.nan, rows[..., min(at, rows.shape[-1] - 1)]) for at in (place, place + 1))

    def give(found: jax.Array) -> jax.Array:
        return _give_gradient(lambda x, key: key, lambda x, key: x == key, x, found.reshape(shape), axes)

    return give(low), give(high)


def _by_bits(x: jax.Array, place: int, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    keys = _keys(jax.lax.stop_gradient(x))
    # A reduction of several operands over the last axis is the one that XLA compiles well.
    rows = _as_rows(keys, axes)
    size, bits = rows.shape[-1], keys.dtype.itemsize * 8
    number = np.int32 if size < 1 << 31 else np.int64
    one = np.asarray(1, keys.dtype)

    def step(at: jax.Array, known: jax.Array) -> jax.Array:
        shift = np.asarray(bits - 2, keys.dtype) - (at.astype(keys.dtype) << one)
        tried = [known | (np.asarray(digit, keys.dtype) << shift) for digit in (1, 2, 3)]
        counts = _reduce_rows([(rows < t[..., None]).astype(number) for t in tried], (0, 0, 0), _add_each)
        below = [(n <= np.asarray(place, number)).astype(keys.dtype) for n in counts]
        return known | ((below[0] + below[1] + below[2]) << shift)

    start = jnp.zeros(rows.shape[:-1], keys.dtype)
    low = jax.lax.fori_loop(np.int32(0), np.int32(bits // 2), step, start)
    most = np.iinfo(keys.dtype).max
    at_most = (rows <= low[..., None]).astype(number)
    rest = jnp.where(rows > low[..., None], rows, np.asarray(most, keys.dtype))
    count, above = _reduce_rows([at_most, rest], (0, most), _add_and_least)
    high = jnp.where(count > np.asarray(min(place + 1, size - 1), number), low, above)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    return _elements(x, low.reshape(shape), axes), _elements(x, high.reshape(shape), axes)


def _as_rows(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The elements over some axes along a last axis; there may be no rows."""
    left = [a for a in range(x.ndim) if a not in axes]
    return jnp.transpose(x, (*left, *axes)).reshape(*(x.shape[a] for a in left), prod(x.shape[a] for a in axes))


Together = tuple["jax.Array", ...]


def _reduce_rows(
    operands: Sequence[jax.Array], starts: Sequence[int], merge: Callable[[Together, Together], Together]
) -> Together:
    """Several reductions over the last axis, in one pass."""
    zeros = tuple(np.asarray(n, x.dtype) for n, x in zip(starts, operands, strict=True))
    return tuple(jax.lax.reduce(tuple(operands), zeros, merge, (operands[0].ndim - 1,)))


def _add_and_least(a: Together, b: Together) -> Together:
    return a[0] + b[0], jnp.minimum(a[1], b[1])


def _add_each(a: Together, b: Together) -> Together:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _keys(x: jax.Array) -> jax.Array:
    """Unsigned numbers in the order of the elements."""
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    if kind(x) in ("bool", "uint"):
        return x.astype(unsigned)
    words = jax.lax.bitcast_convert_type(x, unsigned)
    sign = np.asarray(1 << (8 * x.dtype.itemsize - 1), unsigned)
    return words ^ sign if kind(x) == "int" else jnp.where(words & sign != 0, ~words, words | sign)


def _elements(x: jax.Array, key: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The elements that have a key, with a gradient; NaN where there is NaN."""
    if kind(x) in ("bool", "uint"):
        return key.astype(x.dtype)
    sign = np.asarray(1 << (8 * x.dtype.itemsize - 1), key.dtype)
    if kind(x) == "int":
        return jax.lax.bitcast_convert_type(key ^ sign, x.dtype)

    def find(x: jax.Array, key: jax.Array) -> jax.Array:
        nan = jnp.any(jnp.isnan(x), axis=tuple(axes), keepdims=True)
        found = jax.lax.bitcast_convert_type(jnp.where(key & sign != 0, key ^ sign, ~key), x.dtype)
        return jnp.where(nan, np.asarray(np.nan, x.dtype), found)

    return _give_gradient(find, lambda x, key: _keys(x) == key, x, key, axes)


def _give_gradient(
    find: Callable[[jax.Array, jax.Array], jax.Array],
    equal: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    key: jax.Array,
    axes: Sequence[int],
) -> jax.Array:
    """`find(x, key)`, elements of `x`, with a gradient, which the elements that `equal` finds share."""

    def differentiate(given: Together, changes: Together) -> tuple[jax.Array, jax.Array]:
        (x, key), change = given, changes[0]
        with jax.enable_x64(True):  # JAX may ask for this rule when `apply` is over
            here = equal(x, key) & ~jnp.isnan(x).any(axis=tuple(axes), keepdims=True) & jnp.isfinite(x)
            count = jnp.maximum(jnp.sum(here, axis=tuple(axes), keepdims=True), 1).astype(x.dtype)
            moved = jnp.sum(jnp.where(here, change, jnp.zeros_like(change)), axis=tuple(axes), keepdims=True)
            return find(x, key), moved / count

    element = jax.custom_jvp(find)
    element.defjvp(differentiate)
    return element(x, key)


def interpolate(low: Array, high: Array, share: float) -> Array:
    """The number so far from `low` to `high`, rounded as numpy rounds it."""
    step = round_once("subtract", high, low)
    if share >= 0.5:
        return round_once("subtract", high, round_once("multiply", step, np.asarray(1 - share, step.dtype)))
    return round_once("add", low, round_once("multiply", step, np.asarray(share, step.dtype)))
