"""Backward passes in 64-bit types, whatever the caller's configuration.

JAX runs a backward pass after `apply` is over, so in the caller's configuration. In the default one it rounds the
cotangents of products, gathers and sorts to float32, warns, and then refuses to add them to float64. Where that would
happen a kernel brings its own backward pass. Such a kernel has no forward mode (`jax.jvp`): a rule of JAX has either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.graph.expr import Expr

if TYPE_CHECKING:
    from brainsurgery_jax.op import Kernel, Static

Function = Callable[..., Any]

_TRANSPOSED = {"dot_general", "gather", "triangular_solve"}
"""Linear primitives whose transposes ask for a dtype that the default configuration rounds."""
_DIFFERENTIATED = {
    "svd", "eigh", "eig", "qr", "geqrf", "householder_product", "cholesky", "lu", "sort", "custom_jvp_call",
    "custom_linear_solve",
} | _TRANSPOSED  # fmt: skip
"""Primitives whose derivatives may have such parts."""
_WIDE = {"float64", "complex128"}


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

    def call(xs: Sequence[Array], numbers: Mapping[str, Array]) -> object:
        return kernel.fn(*xs, **dict(static), **numbers)

    with jax.enable_x64(True):
        xs = [jax.ShapeDtypeStruct(a.shape, jnp.dtype(a.dtype.numpy)) for a in avals]
        numbers = {name: jax.ShapeDtypeStruct((), jnp.float64) for name in names}
        forward = jax.make_jaxpr(call)(xs, numbers).jaxpr
        if _DIFFERENTIATED.isdisjoint(_wide_primitives(forward)):
            return False
        try:
            linear = _linear_part(call, xs, numbers)
        except (TypeError, ValueError, NotImplementedError):  # it has no derivative, so that nobody can ask for one
            return False
        return not _TRANSPOSED.isdisjoint(_wide_primitives(linear))


def _linear_part(function: Function, *args: object) -> Any:
    """What a backward pass transposes: the jaxpr of the changes of a function's results, of those of its floats."""
    found: list[Any] = []

    def trace(*args: object) -> None:
        leaves, tree = jax.tree.flatten(args)
        varied = {at: x for at, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)}

        def vary(varied: Mapping[int, Array]) -> object:
            return function(*jax.tree.unflatten(tree, [varied.get(at, x) for at, x in enumerate(leaves)]))

        _, linear = jax.linearize(vary, varied)
        found.append(jax.make_jaxpr(linear)(varied).jaxpr)

    jax.eval_shape(trace, *args)
    return found[0]


def _wide_primitives(jaxpr: Any) -> Iterator[str]:
    """The names of all primitives on 64-bit floats, those of functions inside included."""
    for equation in jaxpr.eqns:
        if _WIDE & {x.aval.dtype.name for x in equation.invars if hasattr(x.aval, "dtype")}:
            yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(found := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _wide_primitives(found)
