"""What reads files of strangers, one function for each: bytes in, nothing out. Anything but a documented error that
leaves one of them is a fault.

A target that needs files is made once, with a folder of its own: it writes the bytes into one of the files of a
checkpoint that was right, and reads it. The first byte says which file where there are several.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from math import prod
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import PlanError, Refusal, StoreError
from brainsurgery_jax.families.adapters import adapter_differences, read_adapter
from brainsurgery_jax.families.compare import differences
from brainsurgery_jax.forward.architecture import decoder_of
from brainsurgery_jax.layout.config import Dims, read_config
from brainsurgery_jax.layout.library import layout_names, layouts_of
from brainsurgery_jax.plan.oly import parse_oly
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.io.files import Stamp
from brainsurgery_jax.store.orbax.zarr import UNKNOWN, parse
from brainsurgery_jax.store.safetensors.header import json_object, read_header
from brainsurgery_jax.store.torch.pickles import unpickle
from tests.fuzz import checkpoints
from tests.fuzz_plans import Case, Fuzzer

DOCUMENTED = (StoreError, PlanError, Refusal)
"""What bytes of strangers may come to. Commands print each as a line with a place and a remedy."""

MOST_ELEMENTS = 1 << 16
"""A larger tensor that a header promises is looked at, but not read: it may be true."""

Read = Callable[[bytes], None]


class Target(NamedTuple):
    """What reads bytes, and what the fuzzer starts from beside the texts of `checkpoints.py`. `confined`: whether it
    may open files of its folder alone; a plan may name any."""

    read: Read
    seeds: Sequence[bytes] = ()
    confined: bool = True


class Bytes(NamedTuple):
    """Bytes as an open file; see `files.File`."""

    data: bytes
    name: str = "fuzzed"

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.size, "")

    def read_into(self, view: memoryview, offset: int, *, tensor: str | None = None) -> None:
        assert offset + len(view) <= self.size, "reads beyond the end of a file"
        view[:] = self.data[offset : offset + len(view)]

    def verify_unchanged(self) -> None: ...

    def close(self) -> None: ...


def read_all(path: Path) -> None:
    """Read the header of a checkpoint, and all tensors that are small."""
    with closing(open_source(str(path))) as source:
        for name, info in source.header.tensors.items():
            assert prod(info.aval.shape) >= 0
            if info.aval.dtype.numpy is not None and info.aval.size <= MOST_ELEMENTS:
                assert source.read(name).shape == info.aval.shape


def void(found: object) -> None:
    """Take no notice of what was read."""


# --- In memory --------------------------------------------------------------------------------------------------------


def safetensors(folder: Path) -> Target:
    """The header of a safetensors file."""
    return Target(lambda data: _check_header(read_header(Bytes(data)).tensors, len(data)))


def _check_header(tensors: dict, nbytes: int) -> None:
    assert all(info.offset + info.aval.nbytes <= nbytes for info in tensors.values()), "a tensor beyond the file"


def zarr(folder: Path) -> Target:
    """The metadata of a zarr array, of version 2 or 3."""

    def read(data: bytes) -> None:
        try:
            array = parse(("zarr", "zarr3")[data[:1] == b"3"], data[1:])
        except UNKNOWN:  # which the caller makes an error with the name of the array
            return
        assert all(type(n) is int and n >= 0 for n in array.aval.shape), "a size that is none"
        assert array.row_bytes >= 0
        assert array.inner_chunks >= 0

    return Target(read)


def pickle(folder: Path) -> Target:
    """A pickle of torch, and what is made of it."""
    return Target(lambda data: void(unpickle(data, "fuzzed")))


def json(folder: Path) -> Target:
    """JSON as headers, indexes and configs hold it."""
    return Target(lambda data: void(json_object(data, "fuzzed", "text")))


def oly(folder: Path) -> Target:
    """A step in OLY."""
    return Target(lambda data: void(parse_oly(data.decode("utf-8", "replace"))))


def plan(folder: Path) -> Target:
    """A plan in YAML, loaded and checked beside checkpoints that have headers alone."""
    fuzzer = Fuzzer(1)

    def read(data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:  # which the reading of files refuses
            return
        fuzzer.check(Case(data))

    return Target(read, confined=False)


# --- In files ---------------------------------------------------------------------------------------------------------


def in_files(make: Callable[[Path], Sequence[str]]) -> Callable[[Path], Target]:
    """A target that replaces a file of a checkpoint. `make` writes that into a folder, and names the files; the
    checkpoint is the folder, or the one file there."""

    def target(folder: Path) -> Target:
        names = make(folder)
        whole = {name: (folder / name).read_bytes() for name in names}
        path = folder if len(os.listdir(folder)) > 1 else folder / names[0]

        def read(data: bytes) -> None:
            name = names[data[0] % len(names)] if data and len(names) > 1 else names[0]
            (folder / name).write_bytes(data[1:] if len(names) > 1 else data)
            try:
                read_all(path)
            finally:
                (folder / name).write_bytes(whole[name])

        several = len(names) > 1
        return Target(read, [bytes([i] * several) + whole[name] for i, name in enumerate(names)])

    return target


def config(folder: Path) -> Target:
    """A config.json: as a decoder, as the dims of every layout, and compared with the tensors of a model."""
    layouts = [layout for name in layout_names() for layout in layouts_of(name)]
    avals = checkpoints.avals_of_a_model()
    path = folder / "config.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = read_config(str(path))
        differences(found, avals, {})
        for layout in layouts:
            dims = Dims(layout, found, {})
            for name in list(dims):
                try:
                    dims[name]
                except Refusal:
                    continue
        decoder_of(found)

    return Target(read)


def peft(folder: Path) -> Target:
    """An adapter_config.json, read and compared with the tensors of the adapter."""
    checkpoints.adapter(folder)
    path = folder / "adapter_config.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with closing(open_source(str(folder))) as source:
            avals = {name: info.aval for name, info in source.header.tensors.items()}
        adapter_differences(json_object(data, str(path), "config"), read_adapter(avals))

    return Target(read)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "safetensors": safetensors,
    "zarr": zarr,
    "pickle": pickle,
    "json": json,
    "oly": oly,
    "plan": plan,
    "index": in_files(checkpoints.sharded),
    "npy": in_files(checkpoints.npy),
    "npz": in_files(checkpoints.npz),
    "torch": in_files(checkpoints.torch_file),
    "dcp": in_files(checkpoints.dcp),
    "orbax": in_files(checkpoints.orbax),
    "ocdbt": in_files(checkpoints.ocdbt),
    "msgpack": in_files(checkpoints.msgpack),
    "hdf5": in_files(checkpoints.hdf5),
    "config": config,
    "peft": peft,
}
"""By name, what makes each target in an empty folder."""


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
