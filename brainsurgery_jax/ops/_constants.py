"""Constants of a plan as arrays of a tensor's dtype, and broadcast to its shape."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, jnp, np
from brainsurgery_jax.dtypes import DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.moves import Broadcast
from brainsurgery_jax.op import kernel


@kernel(moves=lambda avals, params: Broadcast(tuple(params["shape"])))
def broadcast(x: Array, *, shape: tuple[int, ...]) -> Array:
    """The input broadcast to a larger shape."""
    return jnp.broadcast_to(x, shape)


def constant(value: object, dtype: DType, key: str) -> np.ndarray:
    """The value as a numpy array of `dtype`. Raises Refusal if the dtype cannot hold it."""
    if dtype.numpy is None:
        raise Refusal("dtype-opaque", f"{dtype} tensors can be named, copied and moved, but not filled", key=key)
    try:
        wide = np.asarray(value)
    except ValueError as error:
        hint = "Give every row as many numbers as the first one."
        ragged = "the nested lists of values are ragged: rows must have equal lengths"
        raise Refusal("fill-values", ragged, key=key, hint=hint) from error
    if not (wide.dtype == np.bool_ or np.isdtype(wide.dtype, ("integral", "real floating"))):
        raise Refusal("fill-values", f"expected numbers, got {value!r}", key=key,
                      hint="Give a number, or nested lists of numbers.")  # fmt: skip
    return _convert(wide, dtype, key)


def _first(wide: np.ndarray, wrong: np.ndarray) -> str:
    """The first of the values that are wrong."""
    return f"{wide[wrong].ravel()[0].item():g}"


def _convert(wide: np.ndarray, dtype: DType, key: str) -> np.ndarray:
    target = to_numpy(dtype)
    if dtype.is_integer:
        info = np.iinfo(target)
        # Python compares exactly; numpy takes the largest int64 for 2**63.
        if not all(info.min <= number <= info.max for number in wide.ravel().tolist()):
            raise Refusal(
                "fill-range", f"a value of {wide.tolist()} does not fit {dtype} ({info.min} to {info.max})", key=key,
                hint="Choose a value in that range, or cast the tensor to a wider dtype first.",
            )  # fmt: skip
        if (wide != np.trunc(wide)).any():
            raise Refusal("inexact", f"{_first(wide, wide != np.trunc(wide))} is not an integer, but the tensor is"
                          f" {dtype}", key=key, hint="Give whole numbers, or cast to a floating dtype first.",
                          kinds=("float", "complex"))  # fmt: skip
        return wide.astype(target)
    if dtype.is_bool:
        if ((wide != 0) & (wide != 1)).any():
            raise Refusal("inexact", f"{_first(wide, (wide != 0) & (wide != 1))} is neither 0 nor 1, but the tensor is"
                          f" {dtype}", key=key, hint="Use 0 for false and 1 for true, or cast to another dtype first.",
                          kinds=("float", "integer", "complex"))  # fmt: skip
        return wide != 0
    with np.errstate(over="ignore"):
        narrow = wide.astype(target)
    if (np.isfinite(wide) & ~np.isfinite(narrow.astype(np.float64 if dtype.is_float else np.complex128))).any():
        raise Refusal("fill-range", f"a value of {wide.tolist()} is too large for {dtype}", key=key,
                      hint="Choose a smaller value, or cast the tensor to a wider dtype first.")  # fmt: skip
    if (lost := (wide != 0) & (narrow == 0)).any():
        raise Refusal("fill-range", f"{_first(wide, lost)} is too small for {dtype}, and would be 0", key=key,
                      hint="Choose 0 or a larger value, or cast the tensor to a wider dtype first.")  # fmt: skip
    return narrow
