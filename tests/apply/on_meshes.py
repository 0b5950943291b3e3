"""Every row of the table of ops on a mesh of 8 devices, as a process of its own that tells what came of each.

`python -m tests.apply.on_meshes` prints one JSON object: by mode and row the words of a refusal, or "" where the result
is that of the same tensors on the host.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
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
CELLS = (("x32", np.float32, ("auto", "explicit")), ("x64", np.float64, ("explicit",)))
"""JAX's configuration, the dtype of floats, and axes of the mesh."""
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


def outcomes(row: Row, mode: str, dtype: Any, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The words of a refusal by axes of the mesh; empty where the result is that of the host."""
    plan, one = plan_of(row), tree_of(row, dtype)
    wanted = None
    if not no_step_for(plan, one):
        with suppress(PlanError, TypeError):  # as is tested without a mesh
            wanted = outside(mode, plan, one)
    within = 2e-5 if dtype == np.float32 or str(row) in ROUGH else 1e-9
    for kind in kinds:
        on_mesh = partial(MODES[mode], plan, one, MESHES[kind])
        yield kind, "" if wanted is None else outcome(on_mesh, wanted, within)


def outcome(on_mesh: Callable[[], list[Tree]], wanted: Tree, within: float) -> str:
    """The words of a refusal; empty where each result is the one that is wanted."""
    try:
        for tree in on_mesh():
            assert_near(tree, wanted, within)
    except PlanError as refused:
        return str(refused)
    except Exception as broken:  # told, and the test fails
        return f"BROKEN {type(broken).__name__}: {str(broken)[:300]}"
    return ""


def main() -> None:
    """Print the outcomes; a result that differs is told in their place."""
    told: dict[str, dict[str, str]] = {}
    with plugins.scope():
        bs.register(MY_OPS)
        for mode in sys.argv[1:] or MODES:
            for config, dtype, kinds in CELLS:
                for row in TABLE:
                    with jax.enable_x64(config == "x64"):
                        for kind, said in outcomes(row, mode, dtype, kinds):
                            told.setdefault(f"{mode} {kind} {config}", {})[str(row)] = said
    print(json.dumps(told))


if __name__ == "__main__":
    main()
