"""Backward passes in 64-bit types, whatever the caller's configuration.

JAX runs a backward pass after `apply` is over, so in the caller's configuration. In the default one it rounds the
cotangents of products and of gathers to float32, warns, and then refuses to add them to float64. Where that would
happen a kernel brings its own backward pass. Such a kernel has no forward mode (`jax.jvp`): a rule of JAX has either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.graph.expr import Expr

if TYPE_CHECKING:
    from brainsurgery_jax.op import Kernel, Static

Function = Callable[..., Any]

_FACTORED = {
    "svd", "eigh", "eig", "qr", "geqrf", "householder_product", "cholesky", "lu",
    "triangular_solve",
}  # fmt: skip
_ROUNDED = {"dot_general", "gather"} | _FACTORED
"""Primitives whose transposes, or those of their derivatives, ask for a dtype that the default configuration rounds."""
_WIDE = {"float64", "complex128"}
_OWN_RULE = "custom_jvp_call"
"""The primitive of functions that bring their own derivative."""


def with_wide_gradient(function: Function, e: Expr) -> Function:
    """The function that computes the call `e` from its operands and its numbers, its backward pass in 64-bit types."""
    avals, names = tuple(s.aval for s in e.srcs), tuple(name for name, _ in e.numbers)
    assert e.kernel is not None
    if not _rounds(e.kernel, avals, e.static, names):
        return function

    def forward(
        operands: list[Array], numbers: dict[str, Array]
    ) -> tuple[object, Callable[[object], tuple[object, ...]]]:
        with jax.enable_x64(True):
            return jax.vjp(function, operands, numbers)

    def backward(back: Callable[[object], tuple[object, ...]], cotangents: object) -> tuple[object, ...]:
        with jax.enable_x64(True):
            return back(cotangents)

    wide = jax.custom_vjp(function)
    wide.defvjp(forward, backward)
    return wide


@lru_cache(maxsize=4096)
def _rounds(kernel: Kernel, avals: tuple[Aval, ...], static: Static, names: tuple[str, ...]) -> bool:
    """Whether the backward pass of a kernel needs 64-bit types that JAX's rules ask for by name."""
    with jax.enable_x64(True):
        xs = [jax.ShapeDtypeStruct(a.shape, jnp.dtype(a.dtype.numpy)) for a in avals]
        numbers = {name: jax.ShapeDtypeStruct((), jnp.float64) for name in names}
        made = jax.make_jaxpr(lambda xs, ns: kernel.fn(*xs, **dict(static), **ns))(xs, numbers)
    widens = kernel.moves is None and not kernel.elementwise  # it may compute in 64-bit types within
    asked = _ROUNDED if widens or _WIDE & {a.dtype.name for a in avals} else _FACTORED
    return any(name in asked for name in _wide_primitives(made.jaxpr))


def _wide_primitives(jaxpr: Any) -> Iterator[str]:
    """The names of all primitives on 64-bit floats, those of functions inside included that have no derivative of their
    own."""
    for equation in jaxpr.eqns:
        if _WIDE & {x.aval.dtype.name for x in equation.invars if hasattr(x.aval, "dtype")}:
            yield equation.primitive.name
        if equation.primitive.name == _OWN_RULE:
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(found := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _wide_primitives(found)
