"""Worked plans on a mesh of 8 devices, as a process of its own: `python -m tests.apply.mesh_plans` prints what came.

All of them run under a guard that forbids transfers which nobody asked for.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError

MESHES = {
    "auto": jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2),
    "explicit": jax.make_mesh((4, 2), ("x", "y")),
}
W = np.arange(128, dtype=np.float32).reshape(16, 8) / 100 + np.eye(16, 8, dtype=np.float32)
CUT = P("x", "y")
MAKING = (
    {"scale": {"from": "w0", "to": "scaled", "by": 2}},
    {"transpose": {"from": "w0", "to": "transposed"}},
    {"stack": {"from": ["w0", "w1"], "to": "stacked"}},
    {"pad": {"from": "w0", "to": "padded", "shape": [20, -1]}},
    {"copy": {"from": "w0::[:8]", "to": "sliced"}},
    {"fill_": {"target": "w3", "mode": "constant", "value": 1}},
    {"reshape": {"from": "w0", "to": "heads", "shape": [4, 4, 8]}},
    {"einsum": {"from_a": "w0", "from_b": "w1", "to": "gram", "equation": "ia,ja->ij"}},
    {"reduce": {"from": "w0", "to": "row", "mode": "mean", "dim": 0}},
    {"phlora": {"target": "w2", "target_a": "A", "target_b": "B", "rank": 3}},
    {"delete": {"target": "w[012]"}},
)


def plan(*steps: Any) -> bs.Plan:
    return bs.load({"inputs": ["model::a-tree"], "transforms": list(steps)})


def put(mesh: Any, spec: Any = CUT, values: np.ndarray = W, memory: str = "device") -> Any:
    return jax.device_put(values, NamedSharding(mesh, spec, memory_kind=memory))


def tree(mesh: Any, number: int = 3) -> dict[str, Any]:
    return {f"w{i}": put(mesh, values=W + i) for i in range(number)}


def place(array: Any) -> list[Any]:
    return list(array.sharding.spec) + [None] * (array.ndim - len(array.sharding.spec))


def places(made: dict[str, Any]) -> dict[str, Any]:
    return {name: place(array) for name, array in made.items()}


class Counted:
    """Counts what is compiled, and arrays that are made numpy ones."""

    def __enter__(self) -> Counted:
        self.compiled: list[str] = []
        self.fetched = 0
        real, jitted = np.asarray, jax.Array

        def spy(array: Any, *more: Any, **keys: Any) -> Any:
            self.fetched += isinstance(array, jitted)
            return real(array, *more, **keys)

        def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                self.compiled.append(str(kwargs.get("fun_name")).removeprefix("jit(").removesuffix(")"))

        jax.monitoring.register_event_duration_secs_listener(heard)
        self.patch = mock.patch.object(np, "asarray", spy)
        self.patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.stop()
        jax.monitoring.clear_event_listeners()


def same(came: dict[str, Any], made: dict[str, Any]) -> int:
    return sum(any(leaf is other for other in came.values()) for leaf in made.values())


def untouched(mesh: Any) -> Any:
    came = tree(mesh, 4)
    with Counted() as counted:
        made = plan({"scale_": {"target": "w0", "by": 2}}).apply(came)
    return {"same": same(came, made), "of": len(made), "fetched": counted.fetched}


def names(mesh: Any) -> Any:
    came = tree(mesh, 4)
    steps = {"move": {"from": r"w(\d)", "to": r"v\1"}}, {"delete": {"target": "v3"}}, {"assert": {"exists": "v0"}}
    with Counted() as counted:
        made = plan(*steps).apply(came)
    return {"same": same(came, made), "of": len(made), "compiled": len(counted.compiled), "fetched": counted.fetched}


def compiled(mesh: Any) -> Any:
    jax.clear_caches()
    found = {}
    for what, by in (("first", 0.5), ("second", 0.5), ("another factor", 0.25)):
        came = tree(mesh)
        with Counted() as counted:
            jax.block_until_ready(plan({"scale_": {"target": ".*", "by": by}}).apply(came))
        found[what] = counted.compiled
    return found


def checked(mesh: Any) -> Any:
    jax.clear_caches()
    checks = (
        {"assert": {"finite": "w."}},
        {"assert": {"norm": {"of": "w.", "ge": 0.5}}},
        {"assert": {"equal": {"left": "w0", "right": "w0", "eps": 0.5}}},
        {"assert": {"not": {"iszero": "w1"}}},
    )
    found = []
    for _ in range(2):
        came = tree(mesh)
        with Counted() as counted:
            plan(*checks).apply(came)
        found.append(len(counted.compiled))
    return found


def unmade(mesh: Any) -> Any:
    steps = {"rand": {"target": "r", "shape": [4], "seed": 1}}, {"zeroes": {"target": "z", "shape": [3, 2]}}
    made = plan(*steps).apply(tree(mesh))
    return {n: [len(made[n].sharding.device_set), made[n].sharding.is_fully_replicated] for n in "rz"}


def pinned(mesh: Any) -> Any:
    came = {"p": put(mesh, memory="pinned_host")}
    made = plan(
        {"copy": {"from": "p", "to": "copied"}},
        {"transpose": {"from": "p", "to": "transposed"}},
        {"scale_": {"target": "p", "by": 2}},
        {"move": {"from": "p", "to": "scaled"}},
    ).apply(came)
    assert np.array_equal(jax.device_get(made["scaled"]), 2 * W)
    return {name: array.sharding.memory_kind for name, array in sorted(made.items())}


def sent(mesh: Any) -> Any:
    made = plan({"add_": {"from": "n", "to": "w"}}).apply({"w": put(mesh), "n": W.copy()})["w"]
    return {"right": np.array_equal(jax.device_get(made), 2 * W), "place": place(made)}


def asserts(mesh: Any) -> Any:
    bad = W.copy()
    bad[0, 1] = np.nan
    finite = plan({"assert": {"finite": "w1"}}, {"assert": {"finite": "w0"}})
    found = {"holds": "", "fails": ""}
    for what, values in (("holds", W), ("fails", bad)):
        try:
            finite.apply({"w0": put(mesh, values=values), "w1": put(mesh)})
        except PlanError as refused:
            found[what] = refused.diagnostics[0].message.partition(": ")[2]
    _, verdicts = finite.apply({"w0": put(mesh, values=bad), "w1": put(mesh)}, checks="return")
    return {**found, "returned": [bool(v) for v in verdicts.values()]}


def first(array: Any) -> int:
    return array.addressable_shards[0].data.unsafe_buffer_pointer()


def donated(mesh: Any) -> Any:
    came = tree(mesh)
    at = first(came["w0"])
    made = plan({"scale_": {"target": "w0", "by": 2}}, {"delete": {"target": "w2"}}).apply(came, donate=True)
    tied = put(mesh)
    both = plan({"scale_": {"target": "a", "by": 2}}).apply({"a": tied, "b": tied}, donate=True)
    steps = {"scale": {"from": "a", "to": "b", "by": 2}}, {"scale": {"from": "b", "to": "c", "by": 2}}
    chain = plan(*steps, {"delete": {"target": "a"}}).apply({"a": put(mesh)}, donate=True)
    return {
        "in place": first(made["w0"]) == at,
        "gone": [came["w0"].is_deleted(), came["w2"].is_deleted()],
        "untouched": made["w1"] is came["w1"] and not came["w1"].is_deleted(),
        "tied": [both["b"] is tied, tied.is_deleted()],
        "chain": all(np.array_equal(jax.device_get(chain[n]), k * W) for n, k in (("b", 2), ("c", 4))),
    }


def kept(mesh: Any) -> bool:
    came = tree(mesh, 4)
    plan(*MAKING, {"scale_": {"target": "scaled", "by": 3}}).apply(came)
    return all(np.array_equal(jax.device_get(came[f"w{i}"]), W + i) for i in range(3))


def transposed_within(context: AbstractContextManager[Any], mesh: Any) -> Any:
    with context:
        return place(plan({"transpose": {"from": "w0", "to": "t"}}).apply(tree(mesh))["t"])


def product_within(mesh: Any, names: set[str]) -> Any:
    product = plan({"matmul": {"from_a": "a", "from_b": "b", "to": "c"}})

    def each(a: Any, b: Any) -> Any:
        return product.apply({"a": a, "b": b})["c"]

    own = None if "y" in names else "y"  # what is left to the axes that are not manual
    a, b = put(mesh, P("x", own)), put(mesh, P(None, own), W.T.copy())
    within: Any = {"in_specs": (P("x"), P()), "out_specs": P("x"), "axis_names": names}
    return jax.jit(jax.shard_map(each, mesh=mesh, check_vma=False, **within))(a, b)


def mixed(mesh: Any) -> str:
    try:
        product_within(mesh, {"x"})
    except PlanError as refused:
        return str(refused)
    return ""


CASES: dict[str, Callable[[Any], Any]] = {
    "untouched": untouched, "names": names, "compiled": compiled, "checked": checked, "unmade": unmade,
    "pinned": pinned, "sent": sent, "asserts": asserts,
    "donated": donated, "kept": kept,
    "places": lambda mesh: places(plan(*MAKING).apply(tree(mesh, 4))),
    "jitted": lambda mesh: places(jax.jit(lambda t: plan(*MAKING).apply(t, checks="skip"))(tree(mesh, 4))),
}  # fmt: skip


def main() -> None:
    """Print what came of each case."""
    warnings.simplefilter("error")
    told: dict[str, Any] = {}
    for kind, mesh in MESHES.items():
        other = next(m for m in MESHES.values() if m is not mesh)
        with jax.transfer_guard("disallow"):
            told[kind] = {name: case(mesh) for name, case in CASES.items()}
            told[kind]["other context"] = transposed_within(jax.set_mesh(other), mesh)
        assert transposed_within(nullcontext(), mesh) == ["y", "x"]
    explicit, third = MESHES["explicit"], jax.device_put(jnp.asarray(W), jax.devices()[3])
    told["mixed"] = mixed(explicit)
    told["all manual"] = product_within(explicit, {"x", "y"}).shape
    steps = {"scale_": {"target": "a", "by": 2}}, {"transpose": {"from": "a", "to": "b"}}
    made = plan(*steps).apply({"a": third})
    told["one device"] = [next(iter(made[name].devices())).id for name in "ab"]
    filled = plan({"fill_": {"target": "w0", "mode": "constant", "value": 1}})
    told["filled under jit"] = place(jax.jit(filled.apply)({"w0": put(explicit)})["w0"])
    slope = jax.jit(jax.grad(lambda tree: jnp.sum(filled.apply(tree)["w0"])))({"w0": put(explicit)})["w0"]
    told["slope of what is filled"] = {"place": place(slope), "zero": not np.asarray(slope).any()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
