"""A matrix that no process can hold: several compute on it together, each with its part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.engine.test_hosts import Ended, files, run, write_plan

ROWS, COLUMNS, RANK = 2048, 1024, 8
EACH = 41 << 20
"""Bytes for each process: one alone needs 45.5 MB, each of two that share 27.8 MB."""

STEPS: list[dict[str, dict[str, Any]]] = [
    {"phlora": {"target": "w", "target_a": "a", "target_b": "b", "rank": RANK}},
    {"scale_": {"target": "s", "by": 2}},
    {"assert": {"finite": "[ab]"}},
]


@pytest.fixture(scope="module", autouse=True)
def cache_of_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache of compiled programs. What JAX 0.12 takes of it for the CPUs of several processes computes
    something else, so none of the runs may use it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patched.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def plan_in(folder: Path, **keys: Any) -> Path:
    """A plan that factorizes a matrix and scales another; `keys`: others of the factorization."""
    plan = write_plan(folder, [{"phlora": {**STEPS[0]["phlora"], **keys}}, *STEPS[1:]])
    draw = np.random.default_rng(1)
    low = draw.standard_normal((ROWS, 64)) @ draw.standard_normal((64, COLUMNS))
    noisy = low + 0.1 * draw.standard_normal((ROWS, COLUMNS))
    small = draw.standard_normal((512, 512)).astype(np.float32)
    save_file({"w": noisy.astype(np.float32), "s": small}, folder / "m.safetensors")
    return plan


def share(plan: Path, processes: int, moment: str = "", victim: int = -1) -> list[Ended]:
    return run(plan, processes, moment, victim, EACH * processes)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in (folder / "out").glob("*.safetensors"):
        found |= load_file(path)
    return found


def excess(folder: Path) -> float:
    """By what share the error of the factors exceeds the least possible one."""
    w = load_file(folder / "m.safetensors")["w"].astype(np.float64)
    found = tensors(folder)
    error = np.linalg.norm(w - found["b"].astype(np.float64) @ found["a"].astype(np.float64))
    return float(error / np.sqrt((np.linalg.svd(w, compute_uv=False)[RANK:] ** 2).sum()) - 1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    """A run of two processes, and what they tell."""
    folder = tmp_path_factory.mktemp("two")
    return folder, share(plan_in(folder), 2)


def test_two_processes_factorize_a_matrix_that_neither_can_hold_and_certify_the_result(
    shared: tuple[Path, list[Ended]],
):
    folder, ended = shared
    assert [e.code for e in ended] == [0, 0], ended
    (facts,) = ended[0].told["facts"] + ended[1].told["facts"]
    assert facts["excess"] <= 1e-4
    assert excess(folder) == pytest.approx(facts["excess"], abs=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["m.safetensors", "out", "plan.yaml"]


def test_each_of_two_processes_reads_its_half_of_the_matrix(shared: tuple[Path, list[Ended]]):
    _, ended = shared
    half, small = ROWS * COLUMNS * 4 // 2, 512 * 512 * 4
    reads = sorted(e.told["reads"] for e in ended)
    assert half <= reads[0] < half + small // 2
    assert half + small <= reads[1] < half + small + small // 2


def test_what_no_process_must_share_has_the_bytes_of_one_process(shared: tuple[Path, list[Ended]]):
    folder, _ = shared
    small = load_file(folder / "m.safetensors")["s"]
    assert tensors(folder)["s"].tobytes() == (small * np.float32(2)).tobytes()


def test_the_same_processes_write_the_same_bytes_again_and_a_third_that_cannot_share_evenly_changes_nothing(
    tmp_path: Path, shared: tuple[Path, list[Ended]]
):
    ended = share(plan_in(tmp_path), 3)
    assert [e.code for e in ended] == [0] * 3, ended
    assert tensors(tmp_path).keys() == tensors(shared[0]).keys()
    assert files(tmp_path / "out") == files(shared[0] / "out")


def test_too_little_memory_for_those_that_share_is_refused_and_more_processes_help(tmp_path: Path):
    plan = plan_in(tmp_path)
    ended = run(plan, 2, memory=2 * (22 << 20))
    assert [e.told["kind"] for e in ended] == ["PlanError"] * 2
    assert "of memory in each of the 2 processes that share it, the budget is 22.0 MB" in ended[0].told["error"]
    assert "Or start processes on more machines." in ended[0].told["error"]
    ended = run(plan, 4, memory=4 * (22 << 20))
    assert [e.code for e in ended] == [0] * 4, ended
    assert excess(tmp_path) <= 1e-4


@pytest.mark.parametrize(("victim", "moment"), [(1, "meet:1"), (0, "meet:1"), (1, "halt:1")])
def test_the_loss_of_a_process_while_they_compute_together_ends_the_other_and_one_process_completes_the_run(
    tmp_path: Path, victim: int, moment: str
):
    plan = plan_in(tmp_path)
    ended = share(plan, 2, moment, victim)
    survivor = ended[1 - victim]
    assert ended[victim].code == -9
    assert survivor.code == 1
    assert f"process {victim} of 2 is lost" in survivor.told["error"]
    assert not (tmp_path / "out").exists()
    again = run(plan, 1)
    assert again[0].code == 0, again
    assert excess(tmp_path) <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out", "plan.yaml"]


def test_a_process_that_fails_before_they_compute_together_ends_the_others_with_its_error(tmp_path: Path):
    ended = share(plan_in(tmp_path), 2, "fail:1", 1)
    assert [e.code for e in ended] == [1, 1]
    assert "shared: cannot be read" in ended[1].told["error"]
    assert "process 1 of 2 failed: shared: cannot be read" in ended[0].told["error"]
    assert not (tmp_path / "out").exists()


def test_a_result_that_no_certificate_covers_stops_all_and_as_much_memory_as_one_alone_needs_helps(tmp_path: Path):
    plan = plan_in(tmp_path, tol=1e-15)
    ended = share(plan, 2)
    wanted = r"factors of 'w' on 2 processes finds no result that it certifies; alone it needs 45.5 MB of memory"
    for each in ended:
        assert each.told["kind"] == "PlanError"
        assert re.search(
            wanted + r", a process has 41.0 MB(?s:.)*Give each process that much: `memory=`", each.told["error"]
        )
    assert not (tmp_path / "out").exists()
    again = run(plan, 2, memory=2 * (46 << 20))
    assert [e.code for e in again] == [0, 0], again
    assert excess(tmp_path) <= 1e-7


def test_a_process_that_has_started_jax_by_itself_cannot_share_and_new_processes_can(tmp_path: Path):
    plan = plan_in(tmp_path)
    ended = share(plan, 2, "jax:1", 1)
    assert [e.code for e in ended] == [1, 1]
    for each in ended:
        assert "process 1 has started JAX without the devices of the others" in each.told["error"]
        assert "Run the plan in new processes." in each.told["error"]
    again = share(plan, 2)
    assert [e.code for e in again] == [0, 0], again
