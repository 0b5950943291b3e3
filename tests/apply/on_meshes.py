"""Every row of the table of ops on a mesh of 8 devices, as a process of its own that tells what came of each.

`python -m tests.apply.on_meshes` prints one JSON object: by mode and row the words of a refusal, or "" where the result
is that of the same tensors on the host.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import brainsurgery_jax as bs
from brainsurgery_jax import plugins
from brainsurgery_jax.errors import PlanError
from tests.apply.test_modes import MY_OPS, TABLE, assert_near, no_step_for, plan_of, total, tree_of
from tests.ops_table import Row

Tree = dict[str, Any]
AXES = ("x", "y", "z")
MESHES = {
    "auto": jax.make_mesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3),
    "explicit": jax.make_mesh((2, 2, 2), AXES),
}
CELLS = (("auto", "x32", np.float32), ("explicit", "x32", np.float32), ("explicit", "x64", np.float64))
"""Axes of the mesh, JAX's configuration, and the dtype of floats."""
ROUGH = {"cast", "cast_", "soft_cap_", "compute-new", "dequantize", "quantize"}


def put(tree: Tree, mesh: Any) -> Tree:
    """Tensors cut along each axis that has an even number of entries."""
    with jax.enable_x64(True):
        return {name: jax.device_put(x, NamedSharding(mesh, spec_of(x.shape))) for name, x in tree.items()}


def spec_of(shape: tuple[int, ...]) -> Any:
    return P(*(axis if n and n % 2 == 0 else None for axis, n in zip(AXES, shape, strict=False)))


def concretely(plan: bs.Plan, one: Tree, mesh: Any) -> list[Tree]:
    tree = put(one, mesh)
    with jax.transfer_guard("disallow"):
        return [plan.apply(tree, checks="skip")]


def by_jit(plan: bs.Plan, one: Tree, mesh: Any) -> list[Tree]:
    return [jax.jit(lambda tree: plan.apply(tree, checks="skip"))(put(one, mesh))]


def twice(one: Tree) -> Tree:
    with jax.enable_x64(True):
        return {name: jnp.stack([x, x]) for name, x in one.items()}


def by_vmap(plan: bs.Plan, one: Tree, mesh: Any) -> list[Tree]:
    both = {n: jax.device_put(x, NamedSharding(mesh, P(None, *spec_of(x.shape[1:])))) for n, x in twice(one).items()}
    made = jax.jit(jax.vmap(lambda tree: plan.apply(tree, checks="skip")))(both)
    return [jax.tree.map(lambda x, at=at: np.asarray(x)[at], made) for at in range(2)]


def by_shard_map(plan: bs.Plan, one: Tree, mesh: Any) -> list[Tree]:
    def each(tree: Tree) -> Tree:
        made = plan.apply({name: x[0] for name, x in tree.items()}, checks="skip")
        return jax.tree.map(lambda x: x[None], made)

    both = {n: jax.device_put(x, NamedSharding(mesh, P("x"))) for n, x in twice(one).items()}
    made = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False))(both)
    return [jax.tree.map(lambda x, at=at: np.asarray(x)[at], made) for at in range(2)]


def by_grad(plan: bs.Plan, one: Tree, mesh: Any) -> list[Tree]:
    tree = put(one, mesh)
    floats = {name: x for name, x in tree.items() if x.dtype.kind == "f"}
    return [jax.jit(jax.grad(lambda fs: total(plan.apply(tree | fs, checks="skip"))))(floats)]


def outside(mode: str, plan: bs.Plan, one: Tree) -> Tree:
    """The same on the host."""
    if mode != "grad":
        return plan.apply(one, checks="skip")
    floats = {name: x for name, x in one.items() if x.dtype.kind == "f"}
    return jax.jit(jax.grad(lambda fs: total(plan.apply(one | fs, checks="skip"))))(floats)


MODES: dict[str, Callable[[bs.Plan, Tree, Any], list[Tree]]] = {
    "concrete": concretely, "jit": by_jit, "vmap": by_vmap, "grad": by_grad, "shard_map": by_shard_map,
}  # fmt: skip


def outcome(row: Row, mode: str, mesh: Any, dtype: Any) -> str:
    """The words of a refusal; empty where the result is that of the host."""
    plan, one = plan_of(row), tree_of(row, dtype)
    if no_step_for(plan, one):
        return ""
    try:
        wanted = outside(mode, plan, one)
    except (PlanError, TypeError):  # as is tested without a mesh
        return ""
    try:
        found = MODES[mode](plan, one, mesh)
    except PlanError as refused:
        return str(refused)
    for tree in found:
        assert_near(tree, wanted, 2e-5 if dtype == np.float32 or str(row) in ROUGH else 1e-9)
    return ""


def main() -> None:
    """Print the outcomes; a result that differs is told in their place."""
    told: dict[str, dict[str, str]] = {}
    with plugins.scope():
        bs.register(MY_OPS)
        for mode in sys.argv[1:] or MODES:
            for kind, config, dtype in CELLS:
                cell = told.setdefault(f"{mode} {kind} {config}", {})
                for row in TABLE:
                    with jax.enable_x64(config == "x64"):
                        try:
                            cell[str(row)] = outcome(row, mode, MESHES[kind], dtype)
                        except Exception as broken:  # told, and the test fails
                            cell[str(row)] = f"BROKEN {type(broken).__name__}: {str(broken)[:300]}"
    print(json.dumps(told))


if __name__ == "__main__":
    main()
