"""Every kernel that accelerators may compute, with example shapes, as programs to lower or compile without a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from brainsurgery_jax.dtypes import Aval, parse_dtype
from brainsurgery_jax.engine.compute.donation import attempt_of_parts
from brainsurgery_jax.engine.compute.kernels import single_numbers_of
from brainsurgery_jax.engine.compute.ladder import rungs_of
from brainsurgery_jax.graph.expr import Expr, Graph, runs_on_devices
from brainsurgery_jax.op import Kernel, Rung
from brainsurgery_jax.ops.linalg import contraction, matmul
from brainsurgery_jax.ops.lowrank import factors, truncate

LOW = {"method": "auto", "tol": 1e-4, "key_high": 1.0, "key_low": 2.0}

EXAMPLES: tuple[tuple[Kernel[..., Any], tuple[str, ...], dict[str, Any]], ...] = (
    (matmul, ("float32[4096,64]", "float32[64,4096]"), {}),
    (matmul, ("bfloat16[4096,64]", "bfloat16[64,4096]"), {}),
    (contraction, ("float32[1024,4096]", "float32[4096,1024]"), {"equation": "ij,jk->ik"}),
    (contraction, ("bfloat16[8,1024,512]", "bfloat16[8,512,256]"), {"equation": "eij,ejk->eik"}),
    (factors, ("float32[4096,4096]",), {"rank": 64, **LOW}),
    (factors, ("bfloat16[2048,8192]",), {"rank": 16, **LOW}),
    (truncate, ("float16[1024,1024]",), {"rank": 240, **LOW}),
)
"""Kernels, operands and keys: each kernel with every way that a dtype or a shape takes within it."""

Function = Callable[..., Any]


class Program(NamedTuple):
    """A rung of a call as compiled code: the function and the shapes of its arguments, for one call."""

    call: Expr
    rung: Rung
    function: Function
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        assert self.call.kernel is not None
        return f"{self.call.kernel.name} {self.rung.name}".strip()

    @property
    def operands(self) -> str:
        rank = dict(self.call.static).get("rank")
        return ", ".join(str(s.aval) for s in self.call.srcs) + (f", rank {rank}" if rank else "")


def example_calls() -> list[Expr]:
    """The example of each kernel as a call."""
    calls = [_call(*example) for example in EXAMPLES]
    assert all(map(runs_on_devices, calls))
    return calls


def programs(call: Expr, backend: str) -> Iterator[Program]:
    """The programs of a call on a backend: of the first rung, and of the second, from which the others differ only in
    how often they pass a loop; and of all in one function, as a trace has them."""
    state, seen = None, set()
    numbers = single_numbers_of(call)
    arguments: tuple[Any, ...] = ()
    arrays = {i: jax.ShapeDtypeStruct(s.aval.shape, s.aval.dtype.numpy) for i, s in enumerate(call.srcs)}
    for rung in rungs_of(call, backend):
        function = attempt_of_parts(rung)
        arguments = ({}, arrays, jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), numbers), state)
        if (state is None) not in seen:
            yield Program(call, rung, function, arguments)
        seen.add(state is None)
        state = jax.eval_shape(function, *arguments).state
    assert call.kernel is not None
    if call.kernel.within is not None:
        rung = Rung("in a trace", call.kernel.within, call.static)
        yield Program(call, rung, attempt_of_parts(rung), (*arguments[:-1], None))


def _call(kernel: Kernel[..., Any], of: tuple[str, ...], params: dict[str, Any]) -> Expr:
    graph = Graph()
    operands = tuple(graph.placeholder("m", f"x{i}", _aval(text)) for i, text in enumerate(of))
    return graph.call(kernel, operands, params)


def _aval(text: str) -> Aval:
    name, _, sides = text.rstrip("]").partition("[")
    dtype = parse_dtype(name)
    assert dtype is not None
    return Aval(tuple(map(int, sides.split(","))), dtype)
