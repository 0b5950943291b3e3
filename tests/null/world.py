"""Checkpoints that are headers only, and a world of them: what lowering may look at, without files or arrays."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from brainsurgery_jax import api
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.lower import Program, State, lower, lower_steps, start
from brainsurgery_jax.plan.model import PlanData
from brainsurgery_jax.store.base import FileRun, Fingerprint, Header, TensorInfo, fingerprint_of
from brainsurgery_jax.store.io.files import Stamp


def aval(text: str) -> Aval:
    """`aval("bf16[8,3]")`."""
    short, _, sizes = text.rstrip("]").partition("[")
    return Aval(tuple(int(n) for n in sizes.split(",") if n), BY_NAME[short])


class NoFile(NamedTuple):
    """A file of which only the name is there; whoever reads from it fails the test."""

    name: str
    size: int = 0
    stamp: Stamp = Stamp(0, "")

    def read_into(self, view: memoryview, offset: int, *, tensor: str | None = None) -> NoReturn:
        raise AssertionError(f"lowering read {self.name}")

    def verify_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass


class HeaderOnly:
    """A source of which only the header is there; whoever reads from it fails the test."""

    def __init__(self, path: str, tensors: Mapping[str, str]):
        infos: dict[str, TensorInfo] = {}
        end = 0
        for name, text in tensors.items():
            infos[name] = TensorInfo(aval(text), 0, end)
            end += infos[name].aval.nbytes
        self.header = Header(path, (path,), infos, {})
        self.bytes_read = 0

    def file_run(self, name: str, start: int, stop: int) -> FileRun:
        info = self.header.tensors[name]
        width = info.aval.dtype.bits // 8
        return FileRun(NoFile(self.header.path), info.offset + start * width, (stop - start) * width)

    def read(self, name: str, box: object = None) -> NoReturn:
        raise AssertionError(f"lowering read {name}")

    def read_range(self, name: str, start: int, stop: int) -> NoReturn:
        raise AssertionError(f"lowering read {name}")

    @property
    def fingerprint(self) -> Fingerprint:
        return fingerprint_of(self.header, {})

    def verify_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass


class Headers:
    """A world of checkpoints by path: `Headers({"m.safetensors": {"w": "f32[4,3]"}})`. Notes destinations."""

    def __init__(self, files: Mapping[str, Mapping[str, str]]):
        self.graph = Graph()
        self.default_shard = "5GB"
        self.sources = {path: HeaderOnly(path, tensors) for path, tensors in files.items()}
        self.destinations: list[str] = []
        self.contents: dict[str, bytes] = {}

    def key(self, path: str) -> str:
        return path.rstrip("/")

    def open(self, path: str, format: str | None = None) -> HeaderOnly:
        if path not in self.sources:
            raise StoreError(path, "does not exist")
        return self.sources[path]

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> None:
        self.destinations.append(path)

    def side_file(self, checkpoint: str, name: str) -> bytes | None:
        return self.contents.get(f"{checkpoint}/{name}")

    def side_files(self, checkpoint: str) -> None:
        pass


MODEL = {"w": "f32[4,3]", "v": "f32[4,3]", "b": "bf16[3]", "ids": "i64[6]"}


def planned(*steps: object, output: object = None, inputs: Iterable[str] = ("m::m.safetensors",)) -> PlanData:
    """A plan of steps; refused if one of them does not parse."""
    plan = api.load({"inputs": list(inputs), "transforms": list(steps), "output": output})
    assert not plan.problems, plan.problems
    return plan.data


def before(plan: PlanData, world: Headers | None = None) -> tuple[State, Headers]:
    """The state before the steps of a plan, in a world of one model unless another is given."""
    world = world or Headers({"m.safetensors": MODEL})
    return start(plan, world), world


def after(*steps: object, world: Headers | None = None, inputs: Iterable[str] = ("m::m.safetensors",)) -> State:
    """The state after the steps."""
    plan = planned(*steps, inputs=inputs)
    state, world = before(plan, world)
    return lower_steps(state, plan.steps, world)


def program(
    *steps: object,
    output: object = None,
    world: Headers | None = None,
    inputs: Iterable[str] = ("m::m.safetensors",),
) -> Program:
    """The program of the steps, whatever is wrong with it."""
    plan = planned(*steps, output=output, inputs=inputs)
    state, world = before(plan, world)
    return lower(state, plan, world)


def complaints(*steps: object, **rest: Any) -> list[str]:
    """The codes of all that is wrong with the steps, in order."""
    return [d.code for d in found(*steps, **rest)]


def found(*steps: object, **rest: Any) -> tuple[Diagnostic, ...]:
    return program(*steps, **rest).diagnostics


def tensor(state: State, name: str, alias: str = "m") -> Expr:
    return state.spaces[alias].names[name]


def write_zeros(path: Path, tensors: Mapping[str, str]) -> Path:
    """A safetensors file of zeros with these tensors: a header by hand, and a hole for the values."""
    header: dict[str, object] = {}
    end = 0
    for name, text in tensors.items():
        one = aval(text)
        header[name] = {"dtype": one.dtype.tag, "shape": list(one.shape), "data_offsets": [end, end + one.nbytes]}
        end += one.nbytes
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    return path
