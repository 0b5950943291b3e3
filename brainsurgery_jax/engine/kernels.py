"""Compiled kernels: one function per op and static parameters; numbers are passed as values and never compiled in.

Elementwise kernels run on flat blocks, padded to a power of two, so that a checkpoint of any shapes needs a handful of
compilations. One kernel is one step: XLA contracts `a * b + c` inside one function, which would change bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine import blocks
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr

if TYPE_CHECKING:
    from brainsurgery_jax.op import Kernel


@lru_cache(maxsize=4096)
def compiled(kernel: Kernel, static: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """The jitted function of a kernel with its static parameters filled in: `f(arrays, numbers)`."""

    def function(arrays: Sequence[Any], numbers: dict[str, Any]) -> Any:
        return kernel.fn(*arrays, **dict(static), **numbers)

    function.__name__ = kernel.name
    return jax.jit(function)


def _padded(x: Any, length: int) -> Any:
    if x.shape[0] == length:
        return x
    out = np.zeros(length, x.dtype)
    out[: x.shape[0]] = x
    return out


def call_elementwise(e: Expr, operands: Sequence[Any]) -> Any:
    """One elementwise kernel on flat operands of at most one block."""
    n = operands[0].shape[0]
    assert e.kernel is not None and n <= blocks.BLOCK
    length = blocks.padded_length(n)
    result = checked(e, compiled(e.kernel, e.static)([_padded(x, length) for x in operands], numbers_of(e)))
    return result if length == n else np.asarray(result)[:n]


def call_block(e: Expr, block: int) -> Any:
    """Block number `block` of a kernel that makes values from nothing; its length follows from the size alone."""
    assert e.kernel is not None
    size = blocks.padded_length(e.aval.size)
    static = (*e.static, ("size", size))
    return checked(e, compiled(e.kernel, static)([], {**numbers_of(e), "block": np.float64(block)}))


class Outcome(NamedTuple):
    """The results of a call, and what is known about them: the rung that was taken, and its facts."""

    values: tuple[Any, ...]
    rung: str = ""
    facts: Mapping[str, float] = MappingProxyType({})


def call_whole(e: Expr, operands: Sequence[Any]) -> Outcome:
    """A kernel on whole operands. Of a ladder, the first rung that accepts its own result."""
    assert e.kernel is not None
    if e.kernel.rungs is None:
        result = checked(e, compiled(e.kernel, e.static)(list(operands), numbers_of(e)))
        return Outcome(result if isinstance(result, tuple) else (result,))
    for rung in e.kernel.rungs(tuple(s.aval for s in e.srcs), dict(e.static)):
        static = (*e.static, *rung.static.items())
        value, accepted, facts = compiled(rung.kernel, static)(list(operands), numbers_of(e))
        if rung.certain or bool(accepted):
            values = value if isinstance(value, tuple) else (value,)
            return Outcome(values, rung.name, {k: float(v) for k, v in facts.items()})
    raise PlanError([refused(e)])


def numbers_of(e: Expr) -> dict[str, Any]:
    """The numeric parameters of a call, as float64 scalars."""
    return {name: np.float64(value) for name, value in e.numbers}


def checked(e: Expr, result: Any) -> Any:
    """The result of a kernel; where it is guarded, only if it was accepted."""
    assert e.kernel is not None
    if not e.kernel.guarded:
        return result
    value, accepted = result
    if not bool(accepted):
        raise PlanError([refused(e)])
    return value


def refused(e: Expr) -> Diagnostic:
    """What to say when a guarded kernel finds its input impossible."""
    assert e.kernel is not None
    leaves = ", ".join(f"'{s.name}'" for s in e.srcs if s.name)
    return Diagnostic(
        "refused-by-values", f"{e.kernel.name}: {e.kernel.refusal}" + (f" (input {leaves})" if leaves else ""), e.span
    )


def exact() -> Any:
    """The context in which everything runs: 64-bit types stay 64-bit."""
    return jax.enable_x64(True)
