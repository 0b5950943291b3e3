"""Which NVIDIA devices each of several processes of a machine sees. None is needed: names of files stand for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import jax
import pytest

from brainsurgery_jax.engine.run import visible
from brainsurgery_jax.engine.run.hosts import OneProcess
from brainsurgery_jax.errors import StoreError

OPTION = "jax_cuda_visible_devices"


class Process(OneProcess):
    """Process `number` of several, each of which has said a machine and devices."""

    def __init__(self, number: int, said: Sequence[bytes]):
        self.number, self.count, self.said, self.own = number, len(said), said, b""

    def gather(self, about: str, own: bytes = b"") -> Sequence[bytes]:
        self.own = own
        return self.said


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with four devices, where a plugin of JAX could reach them."""
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(visible, "may_be_found", lambda: True)
    monkeypatch.setattr(visible, "machine_identity", lambda: "here")
    monkeypatch.setattr("os.listdir", lambda folder: ["nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "null"])
    before = jax.config.read(OPTION)
    yield
    jax.config.update(OPTION, before)


def seen(number: int, *places: tuple[str, str]) -> str:
    """What a process is told to see: of so many that run on machines with devices."""
    said = [json.dumps([name, *devices.split()]).encode() for name, devices in places]
    jax.config.update(OPTION, "all")
    visible.share_devices(Process(number, said), "all")
    return jax.config.read(OPTION)


def test_processes_of_one_machine_see_a_part_of_its_devices_each():
    assert [seen(k, *[("here", "0 1 2 3")] * 2) for k in range(2)] == ["0,1", "2,3"]
    assert [seen(k, *[("here", "0 1 2 3")] * 4) for k in range(4)] == ["0", "1", "2", "3"]


def test_all_get_as_many_where_some_are_over():
    assert [seen(k, *[("here", "0 1 2 3")] * 3) for k in range(3)] == ["0", "1", "2"]


def test_a_process_that_is_alone_on_its_machine_sees_all():
    assert seen(0, ("here", "0 1 2 3"), ("there", "0 1 2 3")) == "all"


def test_who_was_started_with_devices_of_its_own_keeps_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible.visible_devices() == {0: "2", 1: "3"}
    assert seen(1, ("here", "0 1"), ("here", "2 3")) == "all"


def test_numbers_are_those_that_jax_gives_to_what_the_environment_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert [seen(k, *[("here", "1 3")] * 2) for k in range(2)] == ["0", "1"]
    monkeypatch.setenv("JAX_CUDA_VISIBLE_DEVICES", "1")
    assert visible.visible_devices() == {1: "3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible.visible_devices() == {}


@pytest.mark.parametrize(
    "places", [[("here", "0 1 2 3")] * 5, [("here", "0 1 2 3"), ("here", "3 4")]], ids=["too few", "some of them"]
)
def test_devices_that_cannot_be_divided_are_refused_and_the_remedies_help(
    monkeypatch: pytest.MonkeyPatch, places: list[tuple[str, str]]
):
    with pytest.raises(StoreError, match="share 4 accelerators of a machine, which cannot be divided") as caught:
        seen(0, *places)
    assert "Start fewer processes there, give each its own by CUDA_VISIBLE_DEVICES, or compute by --devices cpu." in (
        caught.value.remedy
    )
    assert seen(0, *places[:1]) == "all"
    visible.share_devices(Process(0, [b'["here"]', b'["here"]']), "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert seen(0, ("here", "0 1"), ("here", "2 3")) == "all"


def test_a_run_without_accelerators_tells_none_and_loads_nothing(monkeypatch: pytest.MonkeyPatch):
    process = Process(0, [b'["here"]', b'["here"]'])
    visible.share_devices(process, "cpu")
    assert json.loads(process.own) == ["here"]
