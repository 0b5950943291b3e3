"""Arrays on a mesh of 8 devices stay there: under a guard that forbids transfers, with Auto and with Explicit axes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.apply.modes import MESH_MODES, limit_of
from tests.apply.test_modes import TABLE

ROOT = Path(__file__).parents[2]


def told_by(module: str, *arguments: str) -> Any:
    """The JSON that a process of its own prints last."""
    command = [sys.executable, "-m", f"tests.apply.{module}", *arguments]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mode", MESH_MODES)
def test_every_op_gives_on_a_mesh_what_it_gives_on_the_host_or_is_refused_at_its_place(mode: str) -> None:
    wrong, steps_before = [], {str(row): len(row.before) for row in TABLE}
    for cell, rows in told_by("on_meshes", mode).items():
        for row, said in rows.items():
            limit = limit_of(row, mode, "f", checks=True) if mode != "concrete" else None
            place = f"transforms[{steps_before[row]}].{row.partition('-')[0]}"
            if said and not (limit and limit.match in said and said.startswith(place) and "\n    " in said):
                wrong.append(f"{cell}: {row}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def plans() -> dict[str, Any]:
    """What came of the plans of `mesh_plans.py`, by axis types and name."""
    return told_by("mesh_plans")


@pytest.mark.parametrize("axes", ["auto", "explicit"])
class TestPlans:
    def test_a_leaf_that_no_step_names_is_not_looked_at(self, plans: dict[str, Any], axes: str) -> None:
        assert plans[axes]["untouched"] == {"same": 3, "of": 4, "fetched": 0}

    def test_a_rename_a_deletion_and_an_assert_on_headers_compile_nothing(
        self, plans: dict[str, Any], axes: str
    ) -> None:
        assert plans[axes]["names"] == {"same": 3, "of": 3, "compiled": 0, "fetched": 0}

    def test_equal_leaves_share_one_compiled_function_and_a_second_call_compiles_none(
        self, plans: dict[str, Any], axes: str
    ) -> None:
        assert plans[axes]["compiled"] == {"first": ["scale"], "second": [], "another factor": []}

    def test_checks_of_equal_leaves_share_compiled_code_and_a_second_call_compiles_none(
        self, plans: dict[str, Any], axes: str
    ) -> None:
        assert plans[axes]["checked"] == [4, 0]

    def test_results_are_cut_as_the_leaves_that_they_replace_or_are_made_of(
        self, plans: dict[str, Any], axes: str
    ) -> None:
        assert plans[axes]["places"] == {
            "scaled": ["x", "y"], "transposed": ["y", "x"], "stacked": [None, "x", "y"], "padded": ["x", "y"],
            "sliced": ["x", "y"], "w3": ["x", "y"], "heads": ["x", None, "y"], "gram": ["x", "y"], "row": ["y"],
            "A": [None, "y"], "B": ["x", None],
        }  # fmt: skip

    def test_what_jit_returns_is_cut_alike(self, plans: dict[str, Any], axes: str) -> None:
        if axes == "explicit":
            assert plans[axes]["jitted"] == plans[axes]["places"]
        assert plans[axes]["jitted"]["transposed"] == ["y", "x"]

    def test_arrays_in_the_memory_of_the_host_go_back_there(self, plans: dict[str, Any], axes: str) -> None:
        assert plans[axes]["pinned"] == {"scaled": "pinned_host", "transposed": "pinned_host", "copied": "pinned_host"}

    def test_what_is_made_of_no_leaf_is_whole_on_each_device(self, plans: dict[str, Any], axes: str) -> None:
        assert plans[axes]["unmade"] == {"r": [8, True], "z": [8, True]}

    def test_an_array_of_numpy_is_sent_to_the_mesh(self, plans: dict[str, Any], axes: str) -> None:
        assert plans[axes]["sent"] == {"right": True, "place": ["x", "y"]}

    def test_an_assert_on_values_is_decided_there_and_explained_if_it_fails(
        self, plans: dict[str, Any], axes: str
    ) -> None:
        assert plans[axes]["asserts"] == {
            "holds": "", "returned": [True, False],
            "fails": "'w0' has 1 value that is not finite, first at [0, 1]",
        }  # fmt: skip

    def test_donation_overwrites_what_is_changed_and_deletes_what_does_not_come_back(
        self, plans: dict[str, Any], axes: str
    ) -> None:
        assert plans[axes]["donated"] == {
            "in place": True, "gone": [True, True], "untouched": True, "tied": [True, False], "chain": True,
        }  # fmt: skip

    def test_without_donation_the_leaves_are_as_before(self, plans: dict[str, Any], axes: str) -> None:
        assert plans[axes]["kept"] is True

    def test_a_mesh_that_is_set_by_the_caller_changes_nothing(self, plans: dict[str, Any], axes: str) -> None:
        assert plans[axes]["other context"] == ["y", "x"]


def test_explicit_axes_beside_manual_ones_are_refused_with_a_remedy(plans: dict[str, Any]) -> None:
    assert plans["mixed"].startswith("transforms[0].matmul: the mesh has manual axes ('x') and explicit")
    assert "Name all axes of the mesh in `shard_map`" in plans["mixed"]
    assert plans["all manual"] == [16, 16]


def test_what_is_on_one_device_of_several_comes_back_to_it(plans: dict[str, Any]) -> None:
    assert plans["one device"] == [3, 3]


def test_a_result_that_no_argument_is_needed_for_still_has_its_devices(plans: dict[str, Any]) -> None:
    assert plans["filled under jit"] == ["x", "y"]


def test_a_result_without_a_slope_still_has_one_on_its_devices(plans: dict[str, Any]) -> None:
    assert plans["slope of what is filled"] == {"place": ["x", "y"], "zero": True}


# --- Two processes ----------------------------------------------------------------------------------------------------


def test_plans_work_on_arrays_that_span_two_processes() -> None:
    with_port = _free_port()
    command = [sys.executable, "-m", "tests.apply.in_processes", str(with_port)]
    running = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for n in range(2)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(error[-2000:] for _, error in outputs)
    for out, _ in outputs:
        told = json.loads(out.splitlines()[-1])
        infinite, dumped, apart = told.pop("infinite"), told.pop("dumped"), told.pop("apart")
        assert told == {
            "spans": True, "renamed": True, "scaled": True, "added": True, "moved": "P(None, 'x')", "copied": True,
            "header": True, "finite": True, "verdict": [False], "together": [10, 4], "dumped everywhere": 1,
        }  # fmt: skip
        assert "it does not hold of 'other': spread over processes" in infinite
        assert "operands live on different devices" in apart and "`jax.device_put(leaf, sharding)`" in apart
        assert "needs values of tensors that span processes" in dumped and "`jax.device_put`" in dumped


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_what_is_saved_from_many_devices_is_restored_by_orbax_as_it_is_asked_for() -> None:
    shards = {"same": [8, [4, 2]], "other": [8, [8, 4]], "whole": [8, [8, 8]]}
    assert told_by("saved_shards") == {"equal": True, "shards": shards}
