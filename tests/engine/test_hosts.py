"""Runs over several processes on loopback: the same bytes, one error for all, nothing published when one is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]

STEPS = [
    {"assert": {"finite": ".*"}},
    {"dump": {"target": r"h\.0\..*"}},
    {"scale_": {"target": r"h\..*w", "by": 0.5}},
    {"move": {"from": r"(h\..*)b", "to": r"\1bias"}},
    {"compute": {"from": {"x": "emb"}, "expr": "x / sqrt(sum(x ** 2))"}},
    {"phlora_": {"target": r"h\.[01]\.w", "rank": 8}},
]
"""Questions, a report, a stream, copies, a fold of a large tensor, and calls on whole operands."""


class Ended(NamedTuple):
    """How a process ended: its exit code (of a killed one below 0), and what it told."""

    code: int
    told: Any


def write_plan(folder: Path, steps: Sequence[Any] = STEPS, **output: Any) -> Path:
    draw = np.random.default_rng(0)
    tensors = {f"h.{n}.w": draw.standard_normal((96, 128)) for n in range(6)}
    tensors |= {f"h.{n}.b": draw.standard_normal(128) for n in range(6)} | {"emb": draw.standard_normal((8200, 2100))}
    save_file({name: x.astype(np.float32) for name, x in tensors.items()}, folder / "m.safetensors")
    output = {"path": str(folder / "out"), **(output or {"shard": "1MB"})}
    plan = {"inputs": [f"m::{folder / 'm.safetensors'}"], "transforms": list(steps), "output": output}
    (folder / "plan.yaml").write_text(json.dumps(plan))
    return folder / "plan.yaml"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(plan: Path, processes: int, moment: str = "", victim: int = -1, memory: int = 1 << 30) -> list[Ended]:
    """The same plan in so many processes with so much memory together; `victim` kills itself at a moment."""
    port, patience = str(free_port()), "3" if moment else "120"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PJRT_NPROC": "1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.host_process", str(plan), port, str(number), str(processes),
             moment if number == victim else "", patience, str(memory)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    found: list[Ended] = []
    if moment.startswith("halt"):  # it is killed when the others have ended without it
        for process in (process for number, process in enumerate(started) if number != victim):
            process.wait()
        started[victim].kill()
    for process in started:
        out, err = process.communicate()
        last = out.strip().splitlines()[-1:] or ["null"]
        found.append(Ended(process.returncode, json.loads(last[0]) or err))
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Any]:
    """What one process writes and reports."""
    folder = tmp_path_factory.mktemp("one")
    (ended,) = run(write_plan(folder), 1)
    assert ended.code == 0, ended.told
    return files(folder / "out"), ended.told["said"]


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_write_the_bytes_of_one_and_the_first_reports(
    tmp_path: Path, wanted: tuple[dict[str, bytes], Any], processes: int
):
    first, *others = run(write_plan(tmp_path), processes)
    assert (first.code, [other.code for other in others]) == (0, [0] * (processes - 1)), (first, others)
    assert files(tmp_path / "out") == wanted[0]
    assert first.told["said"] == wanted[1]
    assert all(other.told["said"] == other.told["published"] == [] for other in others)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out", "plan.yaml"]


def test_an_assert_that_fails_is_the_same_error_on_all_processes_and_nothing_is_written(tmp_path: Path):
    bad = [{"assert": {"iszero": {"of": "emb"}}}, *STEPS]
    ended = run(write_plan(tmp_path, bad), 2)
    assert [e.told["kind"] for e in ended] == ["PlanError"] * 2
    assert ended[0].told == ended[1].told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "plan.yaml"]


def test_the_first_process_alone_tells_of_nan_that_any_computed(tmp_path: Path):
    steps = [{"compute": {"from": {"x": r"(h\..*w)"}, "expr": "log(-abs(x))", "to": r"\1"}}]
    first, second = run(write_plan(tmp_path, steps), 2)
    (note,) = (note for note in first.told["notes"] if "NaN" in note)
    assert all(f"'h.{n}.w'" in note for n in range(6))
    assert second.told["notes"] == []


MOMENTS = [(1, "gather:5"), (1, "write:3"), (0, "write:3")]
"""A worker before it tells its answers, a worker and the first while they write."""


@pytest.mark.parametrize(("victim", "moment"), MOMENTS)
def test_the_loss_of_a_process_ends_all_and_another_number_of_processes_completes_the_run(
    tmp_path: Path, wanted: tuple[dict[str, bytes], Any], victim: int, moment: str
):
    plan = write_plan(tmp_path)
    ended = run(plan, 2, moment, victim)
    survivor = ended[1 - victim]
    assert ended[victim].code == -9
    assert f"process {victim} of 2 is lost" in survivor.told["error"]
    assert "Nothing was published. See what that process printed" in survivor.told["error"]
    assert not (tmp_path / "out").exists()
    again = run(plan, 3 if victim else 1)
    assert [e.code for e in again] == [0] * len(again), again
    assert any("an interrupted run is continued" in note for note in again[0].told["notes"])
    assert files(tmp_path / "out") == wanted[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out", "plan.yaml"]


# --- Outputs of orbax -------------------------------------------------------------------------------------------------


def restore(folder: Path) -> dict[str, np.ndarray]:
    """What orbax restores, by names."""
    found = jax.tree_util.tree_flatten_with_path(ocp.load(str(folder)))[0]
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in found}


def table(folder: Path) -> Any:
    return json.loads((folder / "state/_METADATA").read_text())


@pytest.fixture(scope="module")
def one_orbax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("orbax")
    (ended,) = run(write_plan(folder, format="orbax"), 1)
    assert ended.code == 0, ended.told
    return folder / "out"


def test_each_process_writes_its_part_of_an_orbax_checkpoint_that_orbax_restores_with_the_bits_of_one(
    tmp_path: Path, one_orbax: Path
):
    ended = run(write_plan(tmp_path, format="orbax"), 3)
    assert [e.code for e in ended] == [0] * 3, ended
    out, wanted = tmp_path / "out", restore(one_orbax)
    assert table(out) == table(one_orbax)
    found = restore(out)
    assert found.keys() == wanted.keys()
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
    parts = [path.name for path in (out / "state").iterdir() if path.name.startswith("ocdbt.process_")]
    assert sorted(parts) == [f"ocdbt.process_{k}" for k in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out", "plan.yaml"]


@pytest.mark.parametrize(("victim", "moment"), [(1, "save:1"), (0, "save:2")])
def test_the_loss_of_a_process_that_saves_with_orbax_publishes_nothing_and_the_run_is_completed(
    tmp_path: Path, one_orbax: Path, victim: int, moment: str
):
    plan = write_plan(tmp_path, format="orbax")
    ended = run(plan, 2, moment, victim)
    assert ended[victim].code == -9
    assert f"process {victim} of 2 is lost" in ended[1 - victim].told["error"]
    assert not (tmp_path / "out").exists()
    again = run(plan, 1 if victim else 3)
    assert [e.code for e in again] == [0] * len(again), again
    assert any("an interrupted run is continued" in note for note in again[0].told["notes"])
    found, wanted = restore(tmp_path / "out"), restore(one_orbax)
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out", "plan.yaml"]
