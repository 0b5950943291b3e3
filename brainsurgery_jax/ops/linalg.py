"""Contractions."""

from __future__ import annotations

from math import prod
from typing import Annotated, TypedDict

from pydantic import Field

from brainsurgery_jax._lazy import Array, Inexact, Num, jnp, np
from brainsurgery_jax.dtypes import Aval, common_dtype_hint, float_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Text
from brainsurgery_jax.numerics.equations import ADVICE, Equation, read_equation
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import Avals, Form, Params, build, kernel, op
from brainsurgery_jax.protocol import TensorExpr, View


def _contractible(avals: Avals, params: Params) -> None:
    a, b = avals
    if a.dtype != b.dtype:
        raise Refusal("dtypes-differ", f"dtypes differ: {a} and {b}", hint=common_dtype_hint(a.dtype, b.dtype))
    if a.dtype.is_bool:
        hint = float_hint(a.dtype)
        raise Refusal("dtype-unsupported", f"matmul cannot compute on booleans, got {a}", hint=hint,
                      kinds=("float", "integer", "complex"))  # fmt: skip
    if not a.shape or not b.shape:
        raise Refusal("shapes-differ", f"matmul needs at least one axis on both sides, got {a} and {b}")
    inner = b.shape[-2:][0]  # a vector's only axis
    if a.shape[-1] != inner:
        hint = "The last axis of `from_a` must equal the last but one of `from_b`; `transpose` swaps the two."
        raise Refusal("shapes-differ", f"{a} and {b} cannot be multiplied: {a.shape[-1]} against {inner}", hint=hint)
    batch = zip(reversed(a.shape[:-2]), reversed(b.shape[:-2]), strict=False)
    if any(n != m and 1 not in (n, m) for n, m in batch):
        raise Refusal("shapes-differ", f"the leading axes of {a} and {b} do not broadcast")


def _blas(avals: Avals, params: Params) -> bool:
    return avals[0].dtype.is_inexact


@op(
    Form("matmul", ("from_a", "from_b"), ("to",), "new", slices=frozenset({"from_a", "from_b"})),
    check=_contractible,
    host=_blas,
    device=_blas,
)
def matmul(a: Num[Array, "..."], b: Num[Array, "..."]) -> Array:
    """Matrix product (batched over leading axes, vectors allowed), accumulated in at least float32, rounded once.

    Example: `matmul: {from_a: '(.*)\\.B', from_b: '\\1.A', to: '\\1.delta'}`
    """
    return round_to(a.__array_namespace__().matmul(widen(a), widen(b)), a.dtype)


_BLAS = 2 << 20
"""Bytes of the packing buffers of BLAS."""


def _terms(equation: str) -> Equation:
    """The axes of each operand, and of the result."""
    if (found := read_equation(equation)) is None:
        raise Refusal("einsum-equation", f"'{equation}' is no equation of einsum", key="equation", hint=ADVICE)
    return found


def _sizes(avals: tuple[Aval, ...], equation: str) -> dict[str, int]:
    """The size of each letter, checked against the operands."""
    terms, result = _terms(equation)
    if len(terms) != len(avals):
        found = f"'{equation}' is about {len(terms)} operand{'s' * (len(terms) != 1)}, and there are {len(avals)}"
        hint = "Of one operand give `from_a` alone, of two `from_a` and `from_b`."
        raise Refusal("einsum-equation", found, key="equation", hint=hint)
    sizes: dict[str, int] = {}
    for term, aval in zip(terms, avals, strict=True):
        if len(term) != len(aval.shape):
            found = f"'{term}' has {len(term)} axes, but {aval} has {len(aval.shape)}"
            raise Refusal("einsum-equation", found, key="equation", hint="Write one letter for each axis.")
        for letter, size in zip(term, aval.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                found = f"'{letter}' is {sizes[letter]} and {size} in '{equation}' ({', '.join(map(str, avals))})"
                raise Refusal("shapes-differ", found, key="equation", hint="Axes with one letter have one size.")
    odd = [letter for letter in result if letter not in sizes or result.count(letter) > 1]
    if odd:
        found = f"'{odd[0]}' stands twice in" if odd[0] in sizes else f"no operand has the axis '{odd[0]}' of"
        hint = "Each axis of the result is one of the operands', and comes once."
        raise Refusal("einsum-equation", f"{found} the result of '{equation}'", key="equation", hint=hint)
    return sizes


class EinsumParams(TypedDict):
    """The equation of a contraction."""

    equation: str


def _contract(avals: Avals, params: EinsumParams) -> Avals:
    for aval in avals:
        if aval.dtype != avals[0].dtype:
            hint = common_dtype_hint(avals[0].dtype, aval.dtype)
            raise Refusal("dtypes-differ", f"dtypes differ: {avals[0]} and {aval}", hint=hint)
        if not aval.dtype.is_inexact:
            hint = float_hint(aval.dtype)
            raise Refusal("dtype-unsupported", f"einsum needs floating-point tensors, got {aval}", hint=hint,
                          kinds=("float", "complex"))  # fmt: skip
    sizes = _sizes(avals, params["equation"])
    return (Aval(tuple(sizes[letter] for letter in _terms(params["equation"])[1]), avals[0].dtype),)


def _plain_product(avals: Avals, params: EinsumParams) -> bool:
    """Whether numpy does it by BLAS, which is as fast as compiled code: no axis that all three share, none twice."""
    return _terms(params["equation"]).is_plain


def _workspace(avals: Avals, params: EinsumParams) -> int:
    """Bytes besides operands and result: operands widened, or with axes in an order that BLAS does not take, and the
    result widened."""
    sizes = _sizes(avals, params["equation"])
    made = prod(sizes[letter] for letter in _terms(params["equation"])[1])
    wide = max(4, avals[0].dtype.bits // 8)
    taken = _plain_product(avals, params) and all(len(a.shape) <= 2 for a in avals)
    copied = sum(a.size for a in avals if not taken or a.dtype.bits < 32)
    return _BLAS + wide * (copied + made)


@kernel(result=_contract, host=_plain_product, workspace=_workspace, device=lambda avals, params: True)
def contraction(*xs: Inexact[Array, "..."], equation: str) -> Array:
    """`einsum(equation, *xs)` in at least float32, rounded once."""
    plain = equation.replace(" ", "")
    if on_host(xs[0]):
        return round_to(np.einsum(plain, *map(widen, xs), optimize=True), xs[0].dtype)
    return round_to(jnp.einsum(plain, *map(widen, xs)), xs[0].dtype)


@build(
    Form(
        "einsum", ("from_a", "from_b"), ("to",), "new", slices=frozenset({"from_a", "from_b"}),
        optional=frozenset({"from_b"}),
    ),
)  # fmt: skip
def einsum(
    view: View,
    name: str,
    *operands: TensorExpr,
    equation: Annotated[Text, Field(description="a letter for each axis: `oi,ir->or`")],
) -> TensorExpr:
    """Sum products over shared axes, as `numpy.einsum` does: one or two tensors, `equation` names their axes.

    Axes that the result does not have are summed over. Computed in at least float32, rounded once.
    Example: `einsum: {from_a: '(.*)\\.B', from_b: '\\1.A', to: '\\1.delta', equation: 'or,ri->oi'}`
    """
    return view.apply(contraction, *operands, equation=equation)
