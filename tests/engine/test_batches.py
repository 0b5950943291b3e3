"""Low rank on an accelerator: calls of one shape as one compiled batch, spread over the devices, none touching another.

No accelerator is needed: the engine is given the CPU as one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.engine.compute import batches
from brainsurgery_jax.engine.compute.devices import Accelerators
from brainsurgery_jax.engine.events import Factorized
from tests.checkpoints import plan_of, read, run_plan, same

SIDE = 320


LARGE = 1 << 40


@pytest.fixture
def accelerator() -> Accelerators:
    """The CPU in the place of an accelerator."""
    batches.vectorise.cache_clear()
    return Accelerators(jax.local_devices(), LARGE)


def falling(seed: int, rows: int = SIDE, power: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, SIDE)))[0] for n in (rows, SIDE))
    return ((u * np.arange(1.0, SIDE + 1) ** -power) @ v.T).astype(np.float32)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)


def phlora(rank: int = 8) -> dict[str, dict[str, object]]:
    return {"phlora": {"target": "(.+)", "target_a": r"\1.A", "target_b": r"\1.B", "rank": rank}}


def excess(x: np.ndarray, low: np.ndarray, rank: int) -> float:
    best = np.sqrt((np.linalg.svd(x.astype(np.float64), compute_uv=False)[rank:] ** 2).sum())
    return float(np.linalg.norm(x - low.astype(np.float64)) / best - 1)


def test_every_member_of_a_batch_is_within_the_tolerance(tmp_path: Path, accelerator: Accelerators):
    tensors = {f"w{i}": falling(i) for i in range(5)} | {f"tall{i}": falling(i, 2 * SIDE) for i in range(3)}
    out = run_plan(tmp_path, tensors, phlora(), devices=accelerator)
    for name, x in tensors.items():
        assert excess(x, out[f"{name}.B"] @ out[f"{name}.A"], 8) <= 1e-4


def test_equal_shapes_share_one_compilation(tmp_path: Path, accelerator: Accelerators):
    run_plan(tmp_path, {f"w{i}": falling(i, power=2.0) for i in range(16)}, phlora(), devices=accelerator)
    assert batches.vectorise.cache_info().misses == 1


def test_what_no_rung_of_the_accelerator_certifies_is_computed_on_the_host(tmp_path: Path, accelerator: Accelerators):
    tensors = {"huge": 1e25 * noise(1), "fine": falling(2), "tiny": 1e-25 * noise(3)}
    events: list[object] = []
    plan = plan_of(tmp_path, tensors, phlora(8))
    bs.load(plan).run(durable=False, listen=events.append, devices=accelerator)
    out = read(plan["output"]["path"])
    ways = {e.names[0]: e.method.split("-")[0] for e in events if isinstance(e, Factorized)}
    assert ways == {"huge": "gram", "fine": "filtered", "tiny": "gram"}
    for name, x in tensors.items():
        low = out[f"{name}.B"].astype(np.float64) @ out[f"{name}.A"].astype(np.float64)
        assert excess(x, low, 8) <= 1e-4


def test_a_matrix_has_the_same_factors_alone_and_in_company(tmp_path: Path, accelerator: Accelerators):
    alone = run_plan(tmp_path, {"w1": falling(1)}, phlora(), devices=accelerator)
    together = run_plan(tmp_path, {f"w{i}": falling(i) for i in range(11)}, phlora(), devices=accelerator)
    assert same(alone["w1.A"], together["w1.A"])
    assert same(alone["w1.B"], together["w1.B"])


def test_a_member_that_is_rejected_goes_on_while_the_others_keep_what_they_have(
    tmp_path: Path, accelerator: Accelerators
):
    tensors = {"steep": falling(1, power=2.0), "noise": noise(2), "gentle": falling(3, power=0.5)}
    events: list[object] = []
    plan = plan_of(tmp_path, tensors, phlora(8))
    bs.load(plan).run(durable=False, listen=events.append, devices=accelerator)
    out = read(plan["output"]["path"])
    ways = {e.names[0]: int(e.method.removeprefix("filtered-")) for e in events if isinstance(e, Factorized)}
    assert ways["steep"] < ways["noise"]
    for name, x in tensors.items():
        assert excess(x, out[f"{name}.B"] @ out[f"{name}.A"], 8) <= 1e-4


def test_numpy_and_compiled_code_agree_within_the_tolerance(tmp_path: Path, accelerator: Accelerators):
    x = falling(1, 2 * SIDE)
    step = {"phlora_": {"target": "w", "rank": 48}}
    compiled = run_plan(tmp_path, {"w": x}, step, devices=accelerator)["w"]
    on_host = run_plan(tmp_path, {"w": x}, step, devices="cpu")["w"]
    assert excess(x, compiled, 48) <= 1e-4
    np.testing.assert_allclose(compiled, on_host, atol=2e-3 * np.abs(x).max())


def test_a_member_with_nan_is_named(tmp_path: Path, accelerator: Accelerators):
    bad = falling(2)
    bad[3, 4] = np.nan
    with pytest.raises(bs.PlanError, match=r"NaN or infinity.*'broken'"):
        run_plan(tmp_path, {"fine": falling(1), "broken": bad}, phlora(), devices=accelerator)


FOUR = """
import sys
import jax
import brainsurgery_jax as bs
from brainsurgery_jax.engine.compute import batches
from brainsurgery_jax.engine.compute.devices import Accelerators

assert jax.local_device_count() == 4
send, seen = batches.send_batch, []
batches.send_batch = lambda *arguments: seen.append(send(*arguments)) or seen[-1]
bs.load(sys.argv[1]).run(durable=False, devices=Accelerators(jax.local_devices()))
print({(len(x.sharding.device_set), x.shape[0]) for x in seen})
"""


def test_a_batch_is_spread_over_all_local_devices(tmp_path: Path):
    rng = np.random.default_rng(0)
    tensors = {f"{i}.{side}": rng.standard_normal((6, 6)).astype(np.float32) for i in range(5) for side in "AB"}
    plan = plan_of(tmp_path, tensors, {"matmul": {"from_a": r"(\d+)\.B", "from_b": r"\1.A", "to": r"\1.delta"}})
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FOUR, str(tmp_path / "plan.yaml")]
    done = subprocess.run(command, env={**os.environ, **four}, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("{(4, 8)}", "")
    out = read(plan["output"]["path"])
    for i in range(5):
        np.testing.assert_allclose(out[f"{i}.delta"], tensors[f"{i}.B"] @ tensors[f"{i}.A"], rtol=1e-4, atol=1e-5)
