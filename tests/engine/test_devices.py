"""Which accelerators are used, what fits on them, and what becomes of the rest.

No accelerator is needed: the engine is given the CPU as one, and how much memory it has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import FLOAT32, Aval, parse_dtype
from brainsurgery_jax.engine.compute import batches, devices, donation, placement
from brainsurgery_jax.engine.compute.devices import SIMULATED, Accelerators
from brainsurgery_jax.engine.compute.kernels import exact
from brainsurgery_jax.engine.compute.ladder import rungs_of
from brainsurgery_jax.engine.compute.operands import ArrayReader, Operand
from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.op import Kernel
from brainsurgery_jax.ops.linalg import contraction
from brainsurgery_jax.ops.lowrank import truncate
from tests.checkpoints import plan_of, read, run_plan, same
from tools.device_kernels import programs


def device_of(nbytes: int = 1 << 30) -> Accelerators:
    """The CPU in the place of an accelerator with so many bytes."""
    return Accelerators(jax.local_devices()[:1], nbytes)


def matrix(seed: int, rows: int = 320, columns: int = 320) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


PRODUCT = {"matmul": {"from_a": "(w.*)", "from_b": r"\1", "to": r"\1.square"}}


# --- Which ---------------------------------------------------------------------------------------------------------


def test_more_devices_than_there_are_are_refused_with_what_there_is():
    with pytest.raises(bs.PlanError, match=r"devices: 2 asked for, this process has 1: .+"):
        devices.chosen(2, tuple(jax.local_devices()[:1]))


def test_a_number_of_devices_is_refused_where_there_is_none(tmp_path: Path):
    plan = plan_of(tmp_path, {"w": matrix(0)}, PRODUCT)
    with pytest.raises(bs.PlanError, match=r"1 asked for, this process has no accelerator \[devices-absent\]"):
        bs.load(plan).run(durable=False, devices=1)
    assert not Path(plan["output"]["path"]).exists()


def test_a_word_that_means_no_devices_is_refused(tmp_path: Path):
    with pytest.raises(bs.PlanError, match="expected a number above 0, 'all' or 'cpu', got 0"):
        bs.load(plan_of(tmp_path, {"w": matrix(0)}, PRODUCT)).run(durable=False, devices=0)


def test_a_run_without_accelerators_computes_what_it_does_where_there_are_none(tmp_path: Path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    tensors, step = {"w": matrix(0)}, {"phlora_": {"target": "w", "rank": 8}}
    left_alone = run_plan(tmp_path / "a", tensors, step, devices="cpu")
    assert same(left_alone["w"], run_plan(tmp_path / "b", tensors, step, devices=Accelerators())["w"])


def test_a_device_tells_how_much_memory_it_has_and_some_is_left_to_others():
    class Told:
        platform = "gpu"

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 800, "bytes_in_use": 700}

    assert devices.memory_of(Told()) == 700


# --- Room ----------------------------------------------------------------------------------------------------------


def test_a_call_goes_to_the_device_with_most_room():
    own = Accelerators(jax.local_devices()[:1] * 3, 100)
    with own.one(50) as first, own.one(20) as second, own.one(20) as third, own.one(20) as fourth:
        assert (first, second, third, fourth) == (0, 1, 2, 1)


def test_a_call_waits_for_the_memory_that_others_have():
    own, begun = device_of(100), Event()

    def want() -> None:
        with own.all(60):
            begun.set()

    with own.one(50):
        waiting = Thread(target=want)
        waiting.start()
        assert not begun.wait(0.05)
    waiting.join()
    assert begun.is_set()


def test_operands_are_read_and_sent_while_a_device_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent, other, climbed, send = [], Event(), batches._climb_together, batches.send_batch

    def sending(members: Any, sharding: Any) -> Any:
        sent.append(members[0].shape)
        if len(set(sent)) == 2:
            other.set()
        return send(members, sharding)

    def computing(*args: Any) -> Any:
        assert other.wait(60), "nobody reads while this computes"
        return climbed(*args)

    monkeypatch.setattr(batches, "send_batch", sending)
    monkeypatch.setattr(batches, "_climb_together", computing)
    monkeypatch.setattr("brainsurgery_jax.engine.run.budget.processors", lambda: frozenset({0, 1}))
    tensors = {"w0": matrix(0, 8, 8), "w1": matrix(1, 9, 9)}
    out = run_plan(tmp_path, tensors, PRODUCT, devices=device_of())
    assert set(out) == {"w0", "w1", "w0.square", "w1.square"}


# --- What fits -----------------------------------------------------------------------------------------------------


def test_what_a_batch_lacks_because_of_the_budget_is_filled_up_and_gives_the_same_bits(tmp_path: Path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    tensors = {f"w{i}": matrix(i) for i in range(6)}
    wide = run_plan(tmp_path / "a", tensors, PRODUCT, devices=device_of())
    plan = plan_of(tmp_path / "b", tensors, PRODUCT)
    bs.load(plan).run(durable=False, memory=12 << 20, devices=device_of())
    narrow = read(plan["output"]["path"])
    assert all(same(narrow[name], x) for name, x in wide.items())


def test_what_is_too_large_for_the_device_goes_to_the_host_with_one_note(tmp_path: Path):
    tensors = {f"w{i}": matrix(i) for i in range(3)}
    plan = plan_of(tmp_path, tensors, PRODUCT)
    report = bs.load(plan).run(durable=False, devices=device_of(1 << 20))
    (note,) = report.notes
    assert note.code == "device-full"
    assert "the accelerator has 1.0 MB: computed on the host" in note.message
    out = read(plan["output"]["path"])
    for name, x in tensors.items():
        np.testing.assert_allclose(out[f"{name}.square"], x @ x, rtol=1e-4, atol=1e-4)


def call(kernel: Kernel, *avals: Aval, **params: Any) -> Expr:
    graph = Graph()
    return graph.call(kernel, tuple(graph.placeholder("m", f"x{i}", aval) for i, aval in enumerate(avals)), params)


def half(*shape: int) -> Aval:
    dtype = parse_dtype("bfloat16")
    assert dtype is not None
    return Aval(shape, dtype)


LOW = partial(call, truncate, method="auto", tol=1e-4, key_high=0.0, key_low=1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: call(contraction, Aval((512, 256), FLOAT32), Aval((256, 384), FLOAT32), equation="ij,jk->ik"),
        lambda: call(contraction, half(512, 256), half(256, 384), equation="ij,jk->ik"),
        lambda: LOW(Aval((1024, 512), FLOAT32), rank=8),
        lambda: LOW(half(512, 1024), rank=8),
    ],
)
def test_a_device_is_projected_to_need_no_less_than_its_compiled_programs_say(make: Callable[[], Expr]):
    e = make()
    with exact():
        for program in programs(e, SIMULATED):
            told = jax.jit(program.function).lower(*program.arguments).compile().memory_analysis()
            assert told is not None
            used = told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes
            assert used <= on_device(e), program.name


# --- Donated operands -------------------------------------------------------------------------------------------------


def test_an_operand_is_donated_where_the_result_can_take_its_place(monkeypatch: pytest.MonkeyPatch):
    sent, notes = kept_track_of(monkeypatch), list[Any]()
    aval, own = Aval((16, 16), FLOAT32), device_of()
    with exact():
        for other in (aval, Aval((16, 4), FLOAT32)):
            e = call(contraction, aval, other, equation="ij,jk->ik")
            held = [Operand(s, ArrayReader(matrix(0, *s.aval.shape))) for s in e.srcs]
            placement.call_placed(e, held, own, notes.append)
    assert notes == []
    assert [x.is_deleted() for x in sent] == [True, False, False, True]


def test_an_operand_is_kept_for_the_rungs_that_may_still_be_tried():
    e = LOW(Aval((1024, 512), FLOAT32), rank=8)
    rungs = rungs_of(e, SIMULATED)
    assert len(rungs) > 1
    assert [donation.donated(e, r, rungs) for r in rungs] == [frozenset()] * (len(rungs) - 1) + [frozenset({0})]


def kept_track_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is sent to devices from now on."""
    sent, put = [], jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda *args: sent.append(put(*args)) or sent[-1])
    return sent


# --- Several devices -------------------------------------------------------------------------------------------------

FOUR = """
import json, sys
import jax
import brainsurgery_jax as bs
from brainsurgery_jax.engine.compute import sharding
from brainsurgery_jax.engine.compute.devices import SIMULATED, Accelerators

made, shards = sharding._program, []

def watched(*args):
    program = made(*args)
    def call(*operands):
        results = program(*operands)
        for x in jax.tree.leaves((operands[:2], results[0])):
            shards.append(max(s.data.nbytes for s in x.addressable_shards) if not x.is_deleted() else 0)
        return results
    call.memory_analysis = program.memory_analysis
    return call

sharding._program = watched
own = Accelerators(jax.local_devices(), int(sys.argv[2]))
report = bs.load(sys.argv[1]).run(durable=False, devices=own)
print(json.dumps([max(shards), [n.message for n in report.notes]]))
"""


EIGHT = """
import json, sys
import jax
import brainsurgery_jax as bs
from brainsurgery_jax.engine.compute import operands
from brainsurgery_jax.engine.compute.devices import SIMULATED, Accelerators
from brainsurgery_jax.engine.compute.evaluate import Evaluator
from brainsurgery_jax.store.io.byte_source import ByteSource

read, read_range, send, whole = ByteSource.read, ByteSource.read_range, operands._send_part, Evaluator.whole
seen = {"read": [], "sent": [], "whole": 0}

def watch(self, name, box=None):
    array = read(self, name, box)
    seen["read"].append(array.nbytes)
    return array

def watch_range(self, name, start, stop):
    array = read_range(self, name, start, stop)
    seen["read"].append(array.nbytes)
    return array

def watch_sent(array, device):
    seen["sent"].append(array.nbytes)
    return send(array, device)

def watch_whole(self, e):
    seen["whole"] += 1
    return whole(self, e)

ByteSource.read, ByteSource.read_range = watch, watch_range
operands._send_part, Evaluator.whole = watch_sent, watch_whole
own = Accelerators(jax.local_devices(), int(sys.argv[2]))
report = bs.load(sys.argv[1]).run(durable=False, devices=own)
print(json.dumps([seen, [n.message for n in report.notes]]))
"""


def on_devices(script: str, count: int, plan: dict[str, Any], folder: Path, nbytes: int) -> Any:
    """What a script prints that runs a plan on so many devices of so many bytes."""
    (folder / "plan.yaml").write_text(json.dumps(plan))
    several = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, str(folder / "plan.yaml"), str(nbytes)]
    done = subprocess.run(command, env={**os.environ, **several}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_what_is_too_large_for_one_device_is_cut_over_all_of_them(tmp_path: Path):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, 512)))[0] for n in (1536, 512))
    x = ((u * np.arange(1.0, 513) ** -2) @ v.T).astype(np.float32)
    tensors = {"w": x, "a": matrix(1, 1536, 384), "full": x + matrix(2, 1536, 512)}
    steps = [
        {"phlora_": {"target": "w", "rank": 8, "method": "randomized"}},
        {"einsum": {"from_a": "a", "from_b": "a", "equation": "ij,ik->jk", "to": "gram"}},
        {"phlora_": {"target": "full", "rank": 8}},
    ]
    plan = plan_of(tmp_path, tensors, steps)
    largest, notes = on_devices(FOUR, 4, plan, tmp_path, x.nbytes - 1)
    assert largest < x.nbytes // 2
    assert notes == []
    out = read(plan["output"]["path"])
    np.testing.assert_allclose(out["gram"], tensors["a"].T @ tensors["a"], rtol=1e-3, atol=1e-3)
    for name in ("w", "full"):
        best = np.sqrt((np.linalg.svd(tensors[name].astype(np.float64), compute_uv=False)[8:] ** 2).sum())
        assert np.linalg.norm(tensors[name] - out[name].astype(np.float64)) / best - 1 <= 1e-4


@pytest.mark.parametrize("before", [[], [{"scale_": {"target": "a", "by": 2}}]])
def test_each_device_gets_its_part_from_the_store_and_the_host_holds_no_more(tmp_path: Path, before: list[Any]):
    a = matrix(0, 2048, 256)
    product = {"einsum": {"from_a": "a", "from_b": "a", "equation": "ij,ik->jk", "to": "gram"}}
    plan = plan_of(tmp_path, {"a": a}, [*before, product, {"delete": {"target": "a"}}])
    seen, notes = on_devices(EIGHT, 8, plan, tmp_path, a.nbytes - 1)
    part = a.nbytes // 8
    assert (seen["read"], seen["sent"], seen["whole"]) == ([part] * 8, [part] * 16, 0)
    assert notes == []
    scaled = a * (2 if before else 1)
    np.testing.assert_allclose(read(plan["output"]["path"])["gram"], scaled.T @ scaled, rtol=1e-3, atol=1e-2)
