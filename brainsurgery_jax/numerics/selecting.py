"""Elements at a place of the sorted order, of traced tensors: their bits are found from the highest to the lowest.

Each step counts the elements below a number, so that nothing is sorted: XLA takes 8 s to sort 16 million numbers on a
CPU, and a fraction of a second for 32 counts. The bits are those that numpy's partition finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from brainsurgery_jax._lazy import jax, jnp, np
from brainsurgery_jax.numerics.math import kind, seal


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
    left = [a for a in range(x.ndim) if a not in axes]
    rows = jnp.sort(jnp.transpose(x, (*left, *axes)).reshape(*(x.shape[a] for a in left), -1), axis=-1)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    nan = jnp.isnan(rows[..., -1])
    low, high = (jnp.where(nan, np.nan, rows[..., min(at, rows.shape[-1] - 1)]) for at in (place, place + 1))
    return low.reshape(shape), high.reshape(shape)


def _by_bits(x: jax.Array, place: int, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    axes, size = tuple(axes), prod(x.shape[a] for a in axes)
    keys = _keys(jax.lax.stop_gradient(x))
    number = np.int32 if size < 1 << 31 else np.int64
    bits = keys.dtype.itemsize * 8
    one = np.asarray(1, keys.dtype)

    def count(flags: jax.Array) -> jax.Array:
        return jnp.sum(flags, axis=axes, keepdims=True, dtype=number)

    def step(at: jax.Array, known: jax.Array) -> jax.Array:
        tried = known | (one << (np.asarray(bits - 1, keys.dtype) - at.astype(keys.dtype)))
        return jnp.where(count(keys < tried) <= np.asarray(place, number), tried, known)

    start = jnp.zeros([1 if a in axes else n for a, n in enumerate(x.shape)], keys.dtype)
    low = jax.lax.fori_loop(np.int32(0), np.int32(bits), step, start)
    most = np.asarray(np.iinfo(keys.dtype).max, keys.dtype)
    above = jnp.min(jnp.where(keys > low, keys, most), axis=axes, keepdims=True)
    last = np.asarray(min(place + 1, size - 1), number)
    high = jnp.where(count(keys <= low) > last, low, above)
    return _elements(x, keys, low, axes), _elements(x, keys, high, axes)


def _keys(x: jax.Array) -> jax.Array:
    """Unsigned numbers in the order of the elements."""
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    if kind(x) in ("bool", "uint"):
        return x.astype(unsigned)
    words = jax.lax.bitcast_convert_type(x, unsigned)
    sign = np.asarray(1 << (8 * x.dtype.itemsize - 1), unsigned)
    return words ^ sign if kind(x) == "int" else jnp.where(words & sign != 0, ~words, words | sign)


def _elements(x: jax.Array, keys: jax.Array, key: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The elements that have a key, with a gradient."""
    if kind(x) in ("bool", "uint"):
        return key.astype(x.dtype)
    sign = np.asarray(1 << (8 * x.dtype.itemsize - 1), key.dtype)
    if kind(x) == "int":
        return jax.lax.bitcast_convert_type(key ^ sign, x.dtype)
    found = jax.lax.bitcast_convert_type(jnp.where(key & sign != 0, key ^ sign, ~key), x.dtype)
    here = (keys == key) & jnp.isfinite(x)
    moved = jnp.where(here, x - jax.lax.stop_gradient(x), jnp.zeros_like(x))
    share = jnp.sum(moved, axis=axes, keepdims=True) / jnp.maximum(jnp.sum(here, axis=axes, keepdims=True), 1).astype(
        x.dtype
    )
    nan = jnp.any(jnp.isnan(x), axis=axes, keepdims=True)
    return jnp.where(nan, np.asarray(np.nan, x.dtype), found + share)


def interpolate(low: jax.Array, high: jax.Array, share: float) -> jax.Array:
    """The number so far from `low` to `high`, rounded as numpy rounds it."""
    step = seal(high - low)
    if share >= 0.5:
        return high - seal(step * np.asarray(1 - share, step.dtype))
    return low + seal(step * np.asarray(share, step.dtype))
