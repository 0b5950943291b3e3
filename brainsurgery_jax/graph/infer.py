"""The shape and dtype of a call, without running it: the op's own rule, else JAX's abstract evaluation, memoised."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from brainsurgery_jax._lazy import jax, jnp
from brainsurgery_jax.dtypes import BY_NAME, Aval, common_dtype_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import Kernel

if TYPE_CHECKING:
    from brainsurgery_jax.index.moves import Moves

Static = tuple[tuple[str, Any], ...]
Numbers = tuple[tuple[str, float], ...]


def infer(
    kernel: Kernel, avals: tuple[Aval, ...], static: Static, numbers: Numbers, moves: Moves | None
) -> tuple[Aval, ...]:
    """The avals of `kernel`'s results. Raises `Refusal` where the operands do not fit."""
    if moves is not None:
        return (moves.aval(avals),)
    return _check_and_infer(kernel, avals, static, numbers)


@lru_cache(maxsize=65536)
def _check_and_infer(kernel: Kernel, avals: tuple[Aval, ...], static: Static, numbers: Numbers) -> tuple[Aval, ...]:
    if kernel.elementwise:
        _same(kernel, avals)
    if kernel.check is not None:
        kernel.check(avals, dict(static + numbers))
    if kernel.result is not None:
        return kernel.result(avals, dict(static + numbers))
    return avals[:1] if kernel.elementwise else evaluate(kernel, avals, static, tuple(k for k, _ in numbers))


def _same(kernel: Kernel, avals: tuple[Aval, ...]) -> None:
    for other in avals[1:]:
        if other.shape != avals[0].shape:
            hint = "Nothing is broadcast. Slice the larger one, or reshape."
            raise Refusal("shapes-differ", f"shapes differ: {avals[0]} and {other}", hint=hint)
        if other.dtype != avals[0].dtype:
            hint = common_dtype_hint(avals[0].dtype, other.dtype)
            raise Refusal("dtypes-differ", f"dtypes differ: {avals[0]} and {other}", hint=hint)


@lru_cache(maxsize=65536)
def evaluate(kernel: Kernel, avals: tuple[Aval, ...], static: Static, numbers: tuple[str, ...]) -> tuple[Aval, ...]:
    """The avals by `jax.eval_shape`, with 64-bit types kept (0.6 ms a call, hence memoised; starts no backend)."""
    with jax.enable_x64(True):
        args = [jax.ShapeDtypeStruct(a.shape, jnp.dtype(a.dtype.numpy)) for a in avals]
        values = {k: jax.ShapeDtypeStruct((), jnp.float64) for k in numbers}
        out: Any = jax.eval_shape(lambda xs, ns: kernel.fn(*xs, **dict(static), **ns), args, values)
    value = out[0] if kernel.guarded else out
    results = value if isinstance(value, tuple) else (value,)
    for made in results:
        if not hasattr(made, "dtype"):
            message = f"the function of '{kernel.name}' returns {type(made).__name__} where an array is wanted"
            raise Refusal(
                "op-result", message, hint="Return the array, or a tuple of arrays, at the end of the function."
            )
    return tuple(Aval(tuple(o.shape), BY_NAME[o.dtype.name]) for o in results)
