"""What accelerators compute: products, Cholesky factorizations and small `eigh`, in float32. No device is needed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import brainsurgery_jax.api  # noqa: F401  (all ops are loaded)
from brainsurgery_jax.engine.compute.kernels import exact
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.numerics.filtered import WIDEST
from tools.device_kernels import Program, example_calls, programs

CALLS = example_calls()
PLATFORMS = "cuda", "tpu"
FACTORIZATION = re.compile(r"eig|qr|svd|potr|chol|getr|LuDecomp|syev|hess|tridiag", re.IGNORECASE)
ALLOWED = re.compile(r"potrf|Cholesky|syev|Eigh", re.IGNORECASE)
CUSTOM_CALL = re.compile(r"custom_call @(\w+)\(.*?: \(([^)]*)\)")
SHAPE = re.compile(r"tensor<([\dx]*?)x?[a-z]+\d+>")


def lower(function: Callable[..., Any], arguments: tuple[Any, ...], platform: str) -> str:
    """The StableHLO of a function for a platform."""
    with exact():
        return jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()


def complaints(text: str) -> list[str]:
    """What must not be in a program for an accelerator."""
    found = ["float64"] if re.search(r"[<x]f64>", text) else []
    for name, operands in CUSTOM_CALL.findall(text):
        sides = [int(n) for shape in SHAPE.findall(operands) for n in shape.split("x") if n]
        if FACTORIZATION.search(name) and (not ALLOWED.search(name) or max(sides, default=0) > WIDEST):
            found.append(name)
    for sides in re.findall(r"stablehlo\.cholesky.*?tensor<([\dx]*)xf\d+>", text):
        found += ["cholesky"] * (max(map(int, sides.split("x"))) > WIDEST)
    return found


def programs_of(call: Expr, platform: str) -> list[Program]:
    with exact():
        return list(programs(call, platform))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("call", CALLS, ids=[f"{c.kernel and c.kernel.name} {c.srcs[0].aval}" for c in CALLS])
def test_a_kernel_lowers_without_float64_and_without_a_large_factorization(call: Expr, platform: str):
    for program in programs_of(call, platform):
        assert complaints(lower(program.function, program.arguments, platform)) == []


SQUARE = jax.ShapeDtypeStruct((512, 512), jnp.float32)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    "planted",
    [
        lambda x: x.astype(jnp.float64).sum().astype(jnp.float32),
        lambda x: jnp.where(x > 0, x, jnp.inf),
        jnp.linalg.eigh,
        jnp.linalg.qr,
        lambda x: jnp.linalg.svd(x, full_matrices=False),
        jnp.linalg.cholesky,
    ],
    ids=["float64", "constant", "eigh", "qr", "svd", "cholesky"],
)
def test_the_look_finds_what_is_planted(planted: Callable[..., Any], platform: str):
    assert complaints(lower(planted, (SQUARE,), platform)) != []


def test_every_kernel_that_accelerators_may_compute_has_an_example():
    loaded = [module for name, module in sys.modules.items() if name.startswith("brainsurgery_jax")]
    kernels = {x for module in loaded for x in vars(module).values() if isinstance(x, Kernel) and x.device is not None}
    assert kernels == {call.kernel for call in CALLS}
