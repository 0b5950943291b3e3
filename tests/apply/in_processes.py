"""A plan on arrays that span two processes, in one of them: `python -m tests.apply.in_processes PORT NUMBER`.

Prints one JSON object of what came of each plan.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError

VALUES = np.arange(32, dtype=np.float32).reshape(8, 4)


def global_array(mesh: Any, spec: Any, values: np.ndarray = VALUES) -> Any:
    """An array of which each process makes the part that its devices have."""
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])


def apply(tree: dict[str, Any], *steps: Any, **keys: Any) -> Any:
    with jax.transfer_guard("disallow"):
        return bs.load({"inputs": ["model::a-tree"], "transforms": list(steps)}).apply(tree, **keys)


def here(array: Any) -> bool:
    """Whether the parts of this process are those of the doubled values."""
    return all(np.array_equal(part.data, 2 * VALUES[part.index]) for part in array.addressable_shards)


def refusal(tree: dict[str, Any], step: Any) -> str:
    try:
        apply(tree, step)
    except PlanError as refused:
        return str(refused)
    return ""


DUMP = {"dump": {"target": "w", "verbosity": "stat"}}


def halves() -> Any:
    """A mesh of the devices of this process alone."""
    return jax.sharding.Mesh(np.array(jax.local_devices()), ("x",))


def main() -> None:
    """Apply the plans to arrays that this process has a half of."""
    port, number = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh = jax.make_mesh((4,), ("x",))
    w, other = global_array(mesh, P("x")), global_array(mesh, P("x"), VALUES + np.inf)
    tree = {"w": w, "other": other}
    renamed = apply(tree, {"move": {"from": "w", "to": "v"}})
    scaled = apply(tree, {"scale_": {"target": "w", "by": 2}})["w"]
    added = apply(tree | {"local": VALUES}, {"add_": {"from": "local", "to": "w"}})["w"]
    moved = apply(tree, {"transpose": {"from": "w", "to": "t"}})["t"]
    copied = apply(tree, {"copy": {"from": "w", "to": "c"}})["c"]
    here_alone = {"w": w, "alone": jax.device_put(VALUES[:2], NamedSharding(halves(), P("x")))}
    apart = {"concat": {"from": ["w", "alone"], "to": "both"}}
    everywhere = jax.device_put(w, NamedSharding(mesh, P()))
    reports: list[Any] = []
    told = {
        "spans": not w.is_fully_addressable,
        "renamed": renamed["v"] is w,
        "scaled": here(scaled) and scaled.sharding == w.sharding,
        "added": here(added) and added.sharding == w.sharding,
        "moved": str(moved.sharding.spec),
        "copied": copied is not w and copied.sharding == w.sharding,
        "header": apply(tree, {"assert": {"shape": {"of": "w", "is": [8, 4]}}})["w"] is w,
        "finite": apply(tree, {"assert": {"finite": "w"}})["w"] is w,
        "verdict": [bool(v) for v in apply(tree, {"assert": {"finite": "other"}}, checks="return")[1].values()],
        "infinite": refusal(tree, {"assert": {"finite": "other"}}),
        "apart": refusal(here_alone, apart),
        "together": apply({"w": w, "alone": global_array(mesh, P(), VALUES[:2])}, apart)["both"].shape,
        "dumped": refusal(tree, DUMP),
        "dumped everywhere": bool(apply({"w": everywhere}, DUMP, listen=reports.append)) and len(reports),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
