"""Linear algebra in expressions: of small matrices, which are taken whole, batched over leading axes.

Results are computed in double precision and rounded once (`numerics.dense`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import ModuleType

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.expression import cut_rules as cut
from brainsurgery_jax.expression.on_the_way import Operands
from brainsurgery_jax.expression.operation import Guard, Operation
from brainsurgery_jax.expression.program import Node
from brainsurgery_jax.expression.reductions import Shape
from brainsurgery_jax.expression.signatures import Function, Pick
from brainsurgery_jax.numerics import dense

MOST_SIDE = 16_384
"""Rows of a square matrix that is solved with: its factors take 2 GB in double precision."""

MOST_DECOMPOSED = 8_192
"""The shorter side of a matrix that is decomposed: that takes ten times as long."""

DOUBLE = 8
"""Bytes of a float64."""


# --- Types ------------------------------------------------------------------------------------------------------------


def _take_matrix(name: str, x: jax.Array, most: int, *, square: bool) -> jax.Array:
    """A matrix as floats, or a ValueError that says why it is none that `name` takes."""
    shape = jnp.shape(x)
    what = "square matrices" if square else "matrices"
    if len(shape) < 2 or 0 in shape[-2:] or (square and shape[-1] != shape[-2]):
        raise ValueError(f"takes {what}, batched over leading axes")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError("takes real matrices")
    if min(shape[-2:]) > most:
        side = "rows" if square else "rows or columns"
        raise ValueError(f"{name} takes {what} of at most {most:,} {side}")
    return x * 1.0


def _square(name: str, most: int, shape: Callable[[Shape], Shape]) -> Callable[[jax.Array], jax.Array]:
    def fn(x: jax.Array) -> jax.Array:
        x = _take_matrix(name, x, most, square=True)
        return jnp.zeros(shape(x.shape), x.dtype)

    return fn


def _any(name: str, shape: Callable[[Shape], Shape]) -> Callable[[jax.Array], jax.Array]:
    def fn(x: jax.Array) -> jax.Array:
        x = _take_matrix(name, x, MOST_DECOMPOSED, square=False)
        return jnp.zeros(shape(x.shape), x.dtype)

    return fn


def _solve_type(a: jax.Array, b: jax.Array) -> jax.Array:
    a = _take_matrix("solve", a, MOST_SIDE, square=True)
    if jnp.issubdtype(jnp.result_type(b), jnp.complexfloating):
        raise ValueError("takes real matrices")
    if not jnp.ndim(b) or b.shape[-2:][0] != a.shape[-1]:
        raise ValueError(f"the right side needs {a.shape[-1]} rows, as the matrix has")
    dtype = jnp.result_type(a, b)
    if b.ndim == 1:
        return jnp.zeros(a.shape[:-1], dtype)
    return jnp.zeros((*jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), dtype)


def _trace_type(x: jax.Array) -> jax.Array:
    if jnp.ndim(x) < 2:
        raise ValueError("takes matrices, batched over leading axes")
    return jnp.trace(x, axis1=-2, axis2=-1)


def _short(shape: Shape) -> int:
    return min(shape[-2:])


LINEAR_FUNCTIONS: Mapping[str, Function] = {
    "solve": Function("solve(a, b)", _solve_type, (2, 2)),
    "inv": Function("inv(x)", _square("inv", MOST_SIDE, lambda s: s)),
    "pinv": Function("pinv(x)", _any("pinv", lambda s: (*s[:-2], s[-1], s[-2]))),
    "cholesky": Function("cholesky(x)", _square("cholesky", MOST_SIDE, lambda s: s)),
    "det": Function("det(x)", _square("det", MOST_SIDE, lambda s: s[:-2])),
    "trace": Function("trace(x)", _trace_type),
    "qr": Function("qr(x)[0] @ qr(x)[1]", _any("qr", lambda s: (*s[:-2], _short(s), s[-2] + s[-1])),
                   picks=lambda s: (Pick(0, s[-2], transposed=True), Pick(s[-2], s[-2] + s[-1]))),
    "svd": Function("svd(x)[0] * svd(x)[1] @ svd(x)[2]",
                    _any("svd", lambda s: (*s[:-2], _short(s), s[-2] + 1 + s[-1])),
                    picks=lambda s: (Pick(0, s[-2], transposed=True), Pick(s[-2], None),
                                     Pick(s[-2] + 1, s[-2] + 1 + s[-1]))),
    "eigh": Function("eigh(x)[0]` for the eigenvalues, `eigh(x)[1]",
                     _square("eigh", MOST_DECOMPOSED, lambda s: (*s[:-1], s[-1] + 1)),
                     picks=lambda s: (Pick(0, None), Pick(1, s[-1] + 1, transposed=True))),
}  # fmt: skip
"""How they are called."""


# --- Operations -------------------------------------------------------------------------------------------------------


def _leading(own: int) -> cut.Rule:
    """Leading axes alone, of a result whose last `own` axes are those of one matrix; operands are matrices."""

    def rule(node: Node, shapes: cut.Shapes, axis: int) -> cut.Axes | None:
        from_inner = len(node.aval.shape) - own - axis
        if from_inner <= 0 or any(len(s) == 1 for s in shapes[1:]):
            return None
        places = [len(s) - 2 - from_inner for s in shapes]
        return tuple(None if p < 0 or s[p] == 1 else p for p, s in zip(places, shapes, strict=True))

    return rule


def _copies(times: int) -> Callable[[Node, Operands, Shape], int]:
    """Operands and result in double precision, and so many square matrices of the shorter side as workspace."""

    def rule(node: Node, xs: Operands, shape: Shape) -> int:
        sides = [min(s[-2:]) for s, _ in xs if len(s) > 1]
        small = max(sides, default=0) ** 2
        return DOUBLE * (2 * sum(prod(s) for s, _ in xs) + 3 * prod(shape) + times * small)

    return rule


def _guard(fn: Callable[..., dense.Answer], own: int, times: int) -> Operation:
    guard: Guard = lambda xp, node, shape, xs: fn(*xs)  # noqa: E731
    return Operation(lambda xp, node, shape, xs: fn(*xs)[0], _leading(own), _copies(times), guard=guard, orders=True)


def _det(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return dense.determinant(xs[0])


def _trace(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return dense.trace(xp, xs[0])


LINEAR: Mapping[str, Operation] = {
    "solve": _guard(dense.solve, 2, 1),
    "inv": _guard(dense.inverse, 2, 2),
    "pinv": _guard(dense.pseudo_inverse, 2, 10),
    "cholesky": _guard(dense.cholesky, 2, 1),
    "det": Operation(_det, _leading(0), _copies(1)),
    "trace": Operation(_trace, _leading(0)),
    "qr": _guard(dense.packed_qr, 2, 2),
    "svd": _guard(dense.packed_svd, 2, 8),
    "eigh": _guard(dense.packed_eigh, 2, 4),
}
"""What computes them."""
