"""What processes tell each other: values come as they were, and nothing but values is taken."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax import api
from brainsurgery_jax.engine.plan.planner import plan_work
from brainsurgery_jax.engine.plan.projection import projection, refuse_too_large
from brainsurgery_jax.engine.plan.work import Machine
from brainsurgery_jax.engine.run import joining
from brainsurgery_jax.engine.run.agreement import agree, share_machine
from brainsurgery_jax.engine.run.answers import pack, unpack
from brainsurgery_jax.engine.run.budget import Budget, machine_identity
from brainsurgery_jax.engine.run.joining import ProcessAddress, find
from brainsurgery_jax.engine.run.staging import refuse_to_share
from brainsurgery_jax.lower.program import Program
from brainsurgery_jax.numerics.agreement import Gap
from brainsurgery_jax.reduction import Again
from brainsurgery_jax.store.formats import ORBAX, SAFETENSORS
from brainsurgery_jax.store.joining import Join
from tests.checkpoints import write


class Saying:
    """Process 0 of two, of which the other says this."""

    number, count = 0, 2

    def __init__(self, other: bytes):
        self._other = other

    def gather(self, about: str, own: bytes = b"") -> tuple[bytes, bytes]:
        return own, self._other

    def stop(self, signal: Any) -> Any:
        return signal


def test_answers_come_as_they_were_to_the_last_bit():
    values = {0: np.float64(1) / 3, 1: np.array([np.nan, -0.0]), 2: Again((1, 2.5)), 3: [np.arange(3, dtype="i8")]}
    found: Any = unpack(pack(values))
    assert found[0] == values[0] and found[2] == Again((1, 2.5))
    assert found[1].tobytes() == np.array([np.nan, -0.0]).tobytes()
    assert found[3][0].tolist() == [0, 1, 2]


def test_values_of_our_own_types_are_answers_too():
    assert unpack(pack({7: Gap(0)})) == {7: Gap(0)}


HERE, FIRST_TWO = "this machine", frozenset({0, 1})


class Among:
    """Process `number` of several that run at these places: machine, memory, processors."""

    def __init__(self, number: int, *places: tuple[str, int, frozenset[int]]):
        self.number, self.count = number, len(places)
        self._said = [json.dumps([name, nbytes, sorted(cpus)]).encode() for name, nbytes, cpus in places]

    def gather(self, about: str, own: bytes = b"") -> list[bytes]:
        return self._said

    def stop(self, signal: Any) -> Any:
        return signal


def shares(*places: tuple[str, int, frozenset[int]]) -> list[tuple[int, int, int]]:
    """The memory, the threads and the number of neighbours of each process."""
    found = (
        share_machine(Among(number, *places), Budget(nbytes, len(cpus)))
        for number, (_, nbytes, cpus) in enumerate(places)
    )
    return [(budget.host_bytes, budget.threads, budget.sharing) for budget in found]


def test_processes_of_one_machine_divide_its_memory_and_its_processors():
    eight = frozenset(range(8))
    assert [shares(*[(HERE, 800, eight)] * n)[0] for n in (1, 2, 3, 4)] == [
        (800, 8, 1), (400, 4, 2), (266, 2, 3), (200, 2, 4),
    ]  # fmt: skip


def test_processors_that_are_bound_to_one_process_are_not_divided_but_the_memory_is():
    assert shares((HERE, 800, FIRST_TWO), (HERE, 800, frozenset({2, 3}))) == [(400, 2, 2)] * 2


def test_processes_of_several_machines_plan_by_the_smallest_share_and_use_their_own_processors():
    others = [("another", 900, frozenset(range(4)))]
    assert shares((HERE, 800, FIRST_TWO), (HERE, 800, FIRST_TWO), *others) == [(400, 1, 2)] * 2 + [(400, 4, 1)]


def test_more_processes_than_processors_have_a_thread_each():
    assert shares(*[(HERE, 900, FIRST_TWO)] * 3) == [(300, 1, 3)] * 3


def share_of_one(processes: int, nbytes: int) -> Machine:
    """What one of several processes may use on a machine of eight processors."""
    budget = share_machine(Among(0, *[(HERE, nbytes, frozenset(range(8)))] * processes), Budget(nbytes, 8))
    return Machine(budget.host_bytes, budget.threads, sharing=budget.sharing)


@pytest.fixture
def scaled(tmp_path: Path) -> Program:
    """Sixteen tensors of 8 MB that are scaled."""
    write(tmp_path / "m.safetensors", {f"w{k}": np.zeros((1 << 21) + k, np.float32) for k in range(16)})
    steps = [{"scale_": {"target": ".*", "by": 2}}]
    inputs, output = [f"m::{tmp_path / 'm.safetensors'}"], str(tmp_path / "out.safetensors")
    return api.lower_plan(bs.load({"inputs": inputs, "transforms": steps, "output": output}))


def test_several_processes_of_a_machine_project_together_no_more_than_one(scaled: Program):
    counts = 1, 2, 4, 8
    machines = [share_of_one(n, 1 << 30) for n in counts]
    each = [projection(plan_work(scaled, machine), machine).in_all for machine in machines]
    assert each == sorted(set(each), reverse=True)
    assert [n * found for n, found in zip(counts, each, strict=True)] == [each[0]] * 4


def test_a_share_that_is_too_small_is_refused_and_both_remedies_help(scaled: Program):
    def refuse(processes: int, nbytes: int) -> None:
        machine = share_of_one(processes, nbytes)
        refuse_too_large(plan_work(scaled, machine), machine)

    told = "(?s)the share of one of 8 processes on this machine.*Give more: `memory=`. Or start fewer processes on each"
    with pytest.raises(bs.PlanError, match=told):
        refuse(8, 64 << 20)
    refuse(8, 256 << 20)
    refuse(2, 64 << 20)


def test_the_processes_of_this_test_run_on_one_machine():
    ask = "from brainsurgery_jax.engine.run.budget import machine_identity; print(machine_identity(), end='')"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == machine_identity() != ""


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize("value", [Hostile(), {0: bs.load}])
def test_functions_are_no_values(value: object):
    with pytest.raises(pickle.UnpicklingError, match="is no value of an answer"):
        unpack(pickle.dumps(value))


def test_processes_that_would_do_something_else_are_refused_by_kind():
    told = "(?s)process 1 has other plan and versions than process 0.*Give all processes the same plan"
    with pytest.raises(bs.StoreError, match=told):
        agree(Saying(b'{"plan": "b", "inputs": "x", "versions": "2"}'), "run",
              {"plan": "a", "inputs": "x", "versions": "1"})  # fmt: skip


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (ProcessAddress("host", 0, 2), "(?s)is no address of a coordinator.*Write HOST:PORT"),
        (ProcessAddress("host:1", 2, 2), "(?s)there is no process 2 of 2.*Number the processes from 0 to 1"),
    ],
)
def test_an_impossible_address_is_refused_before_anything_is_read(address: ProcessAddress, told: str):
    with pytest.raises(bs.StoreError, match=told):
        find(address)


def test_where_the_environment_tells_nothing_the_options_are_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "JAX_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(bs.StoreError, match=r"Give --coordinator HOST:PORT, --process-id N, --process-count M\."):
        find(ProcessAddress())


def test_a_port_in_use_is_refused_and_another_one_works():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(bs.StoreError, match=r"(?s)could not start: .*Give --coordinator another port"):
            joining.start_service(taken.getsockname()[1], 1, 1.0)
        port = taken.getsockname()[1]
    service = joining.start_service(port, 1, 1.0)
    with pytest.raises(bs.StoreError, match="another process 0 of this one"):
        joining.start_service(port, 1, 1.0)
    service.communicate(b"end\n")


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_says_for_what_it_waits_and_can_be_stopped_then(
    process: int, stop: signal.Signals, code: int, here: Path
) -> None:
    write("m.safetensors", {"a": np.ones(3, np.float32)})
    Path("plan.yaml").write_text("inputs: [m::m.safetensors]\noutput: out.safetensors\n")
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = ["--distributed", "--coordinator", address, "--process-id", str(process), "--process-count", "2"]
    line = [sys.executable, "-m", "brainsurgery_jax", "run", "plan.yaml", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stderr is not None
        said = run.stderr.readline()
        assert said == f"process {process} waits at {address} for all 2 processes of the run\n"
        run.send_signal(stop)
        assert "nothing was published" in run.stderr.read()
        assert run.wait() == code
    joining.start_service(int(address.rpartition(":")[2]), 1, 1.0).communicate(b"end\n")  # the coordinator is gone


def test_processes_that_do_not_find_each_other_are_told_how_to_be_started(monkeypatch: pytest.MonkeyPatch):
    class Runtime:
        def get_distributed_runtime_client(self, *where: object, **how: object) -> Any:
            return self

        def connect(self) -> None:
            raise RuntimeError("DEADLINE_EXCEEDED: nobody answers")

    monkeypatch.setattr(joining, "runtime", Runtime)
    told = "Start all 2 processes, each with the same --coordinator and its own --process-id"
    with pytest.raises(bs.StoreError, match=told):
        joining.connect(ProcessAddress("localhost:1", 1, 2))


def test_files_that_a_process_cannot_see_are_refused(tmp_path: Path):
    with pytest.raises(bs.StoreError, match="Write to a file system that all processes share"):
        Join([str(tmp_path / "away")]).stage(str(tmp_path / "out"), overwrite=False, own=())
    (tmp_path / "here").mkdir()
    assert Join([str(tmp_path / "here")]).stage(str(tmp_path / "out"), overwrite=False, own=()).staging


def test_an_output_that_one_process_must_write_alone_is_refused_in_words(tmp_path: Path):
    write(tmp_path / "m.safetensors", {"w": np.zeros(2, np.float32)})
    steps = [{"scale_": {"target": "w", "by": 2}}]
    output = {"path": str(tmp_path / "out"), "format": "dcp"}
    plan = bs.load({"inputs": [f"m::{tmp_path / 'm.safetensors'}"], "transforms": steps, "output": output})
    (publication,) = api.lower_plan(plan).publications
    told = (
        "(?s)is dcp, which one process must write alone.*Write `format: safetensors` or `format: orbax`, or run without"
    )
    with pytest.raises(bs.StoreError, match=told):
        refuse_to_share([publication])
    for format in (SAFETENSORS, ORBAX):
        refuse_to_share([publication._replace(format=format)])
    with pytest.raises(bs.StoreError, match="Write to a folder that all processes share, or run without --distributed"):
        refuse_to_share([publication._replace(format=SAFETENSORS, path="s3://bucket/out")])
