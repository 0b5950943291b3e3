"""The table of formats. No other module distinguishes formats: everything that differs is in a row of this table.

To add a format, write its source and its writer (or an encoder for `encoded.EncodedWriter`), a module that offers them
as `Reading` and `Writing` say, and a row. Rows import what they need when they are used (`packages.py`), so that the
table costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.store import packages
from brainsurgery_jax.store.base import FileCounts, Source, WriteOptions, Writer
from brainsurgery_jax.store.folder import (
    ADAPTER_CONFIG,
    AGGREGATE,
    DELTA_MANIFEST,
    TORCH_SUFFIXES,
    holds_adapter,
    suffix_of,
)
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.options import NESTED, Option, read_chunk, read_flag, read_mapping, read_version


class Reading(Protocol):
    """How a format is read: the module of its folder that offers this."""

    def open_source(self, path: str, /) -> Source:
        """The source of the checkpoint at a path."""
        ...


class Writing(Protocol):
    """How a format is written: the module of its folder that offers this."""

    def open_writer(self, staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions, /) -> Writer:
        """The writer of an output."""
        ...

    def check_output(self, path: str, avals: Mapping[str, Aval], options: WriteOptions, /) -> None:
        """Raises StoreError for what would stop the writer and is known beforehand: a tensor, a name, metadata or an
        option that the format cannot hold."""
        ...


class Format(NamedTuple):
    """A checkpoint format.

    - `suffixes` of its single files (none if it has only folders), and whether it may be a `folder`;
    - `recognises(folder, names)`: whether a folder with these names in it is such a checkpoint;
    - `begins(head)`: whether a file with these first bytes has this format, asked if the suffix is not conclusive;
    - `reading`, `writing`: import what reads and what writes it (None: it is only read);
    - `options` of this format alone that a plan may set; `shards`: whether a folder is split into files by size;
    - `encoded`: written by way of a scratch file, so that it takes its space twice while it is made;
    - `cut`: into how many files it will be written, and how many of these a source holds as they stand;
    - `held`: the bytes that a library holds when all tensors are there, and it makes the output of them;
    - `trees`: whether it holds trees; of others notes are kept in the metadata, `metadata_bytes` of them at most (None:
      any number);
    - `together`: whether several processes can write it together;
    - `keeps`: whether tensors that an output has from its base as they are stay there, and are not written;
    - `config_file`: the file beside the tensors that must be there for others to load them.
    """

    name: str
    suffixes: tuple[str, ...]
    folder: bool
    recognises: Callable[[str, Sequence[str]], bool]
    reading: Callable[[], Reading]
    writing: Callable[[], Writing] | None
    options: Mapping[str, Option] = {}
    shards: bool = False
    encoded: bool = False
    cut: Callable[[Mapping[str, Aval], WriteOptions], FileCounts] | None = None
    held: Callable[[Mapping[str, Aval], WriteOptions], int] | None = None
    trees: bool = False
    metadata_bytes: int | None = 0
    together: bool = False
    keeps: bool = False
    config_file: str = ""
    begins: Callable[[bytes], bool] = lambda head: False

    def open(self, path: str) -> Source:
        """The source of the checkpoint at a path."""
        return self.reading().open_source(path)

    def write(self, staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> Writer:
        """The writer of an output, which `check` has accepted."""
        assert self.writing is not None, f"{self.name} is not written"
        return self.writing().open_writer(staged, avals, options)

    def check(self, path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
        """Raises StoreError for what would stop the writer and is known beforehand."""
        assert self.writing is not None, f"{self.name} is not written"
        self.writing().check_output(path, avals, options)


def _is_file_of(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file has one of these suffixes, or is an index of such files."""
    return suffix_of(name) in suffixes or any(name.endswith(f"{suffix}.index.json") for suffix in suffixes)


# --- The table --------------------------------------------------------------------------------------------------------

SAFETENSORS = Format(
    name="safetensors",
    suffixes=(".safetensors",),
    folder=True,
    recognises=lambda folder, names: any(_is_file_of(name, {".safetensors"}) for name in names),
    reading=packages.load_safetensors,
    writing=packages.load_safetensors,
    shards=True,
    together=True,
    cut=packages.cut_safetensors,
    begins=lambda head: head[8:9] == b"{" and head[4:8] == bytes(4),
    metadata_bytes=None,
)

TORCH = Format(
    name="torch",
    suffixes=(".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar"),
    folder=True,
    recognises=lambda folder, names: any(_is_file_of(name, TORCH_SUFFIXES) for name in names),
    reading=packages.load_torch,
    writing=packages.load_torch,
    options={
        "bare": Option("Whether the file is its one tensor, without a dict around it.", "true", read_flag),
        **NESTED,
    },
    encoded=True,
)

PEFT = Format(
    name="peft",
    suffixes=(),
    folder=True,
    recognises=lambda folder, names: holds_adapter(names),
    reading=packages.load_peft,
    writing=packages.load_peft,
    options={"config": Option("What to set in adapter_config.json.", "{r: 8}", read_mapping)},
    config_file=ADAPTER_CONFIG,
    metadata_bytes=None,
)

DCP = Format(
    name="dcp",
    suffixes=(),
    folder=True,
    recognises=packages.recognise_dcp,
    reading=packages.load_dcp,
    writing=packages.load_dcp,
    options=NESTED,
    encoded=True,
)

NPY = Format(
    name="npy",
    suffixes=(".npy",),
    folder=False,
    recognises=lambda folder, names: False,
    reading=packages.load_npy,
    writing=packages.load_npy,
    encoded=True,
    begins=lambda head: head.startswith(b"\x93NUMPY"),
)

NPZ = Format(
    name="npz",
    suffixes=(".npz",),
    folder=False,
    recognises=lambda folder, names: False,
    reading=packages.load_npz,
    writing=packages.load_npz,
    options={"compression": Option("Whether the arrays are compressed.", "true", read_flag)},
    encoded=True,
    metadata_bytes=65535,
)

ORBAX = Format(
    name="orbax",
    suffixes=(),
    folder=True,
    recognises=packages.recognise_orbax,
    reading=packages.load_orbax,
    writing=packages.load_orbax,
    options={
        "version": Option("The API whose layout is written: v1, or v0 with the tree at the top.", "v0", read_version),
        "compression": Option("Whether chunks are compressed.", "true", read_flag),
        "chunk": Option("Largest chunk of a tensor.", "64MB", read_chunk),
    },
    encoded=True,
    held=packages.held_by_orbax,
    together=True,
    trees=True,
    metadata_bytes=None,
)

FLAX = Format(
    name="flax",
    suffixes=(".msgpack",),
    folder=True,
    recognises=lambda folder, names: any(_is_file_of(name, {".msgpack"}) for name in names),
    reading=packages.load_flax,
    writing=packages.load_flax,
    options={"stream": Option("Whether it is a stream of keys and arrays, as EasyLM reads it.", "true", read_flag)},
    shards=True,
    cut=packages.cut_flax,
    trees=True,
    begins=packages.begins_flax,
)

DELTA = Format(
    name="delta",
    suffixes=(),
    folder=True,
    recognises=lambda folder, names: DELTA_MANIFEST in names,
    reading=packages.load_delta,
    writing=packages.load_delta,
    metadata_bytes=None,
    keeps=True,
)

T5X = Format(
    name="t5x",
    suffixes=(),
    folder=True,
    # The name is asked first: else every folder of torch and orbax would wait for what reads T5X.
    recognises=lambda folder, names: AGGREGATE in names and packages.recognise_t5x(folder, names),
    reading=packages.load_t5x,
    writing=None,
)

ZARR = Format(
    name="zarr",
    suffixes=(),
    folder=True,
    recognises=packages.recognise_zarr,
    reading=packages.load_zarr,
    writing=None,
)

EQUINOX = Format(
    name="equinox",
    suffixes=(".eqx",),
    folder=False,
    recognises=lambda folder, names: False,
    reading=packages.load_equinox,
    writing=packages.load_equinox,
    encoded=True,
)

HDF5 = Format(
    name="hdf5",
    suffixes=(".h5", ".hdf5"),
    folder=False,
    recognises=lambda folder, names: False,
    reading=packages.load_hdf5,
    writing=packages.load_hdf5,
    encoded=True,
    begins=lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"),
)

FORMATS: tuple[Format, ...] = (DELTA, PEFT, SAFETENSORS, T5X, ORBAX, DCP, TORCH, FLAX, ZARR, NPZ, NPY, EQUINOX, HDF5)
"""Every format. Of those that recognise a folder the first one opens it."""

NAMES = tuple(format.name for format in FORMATS if format.writing is not None)
"""The formats that an output can have."""

_LEFT_OUT = "brainsurgery.left_out"  # what versions before 1.0 copied of an input, values included
_OTHER_NAMES = {"numpy": "npy"}


def names_of(format: Format) -> tuple[str, ...]:
    """The names of a format: its own, and what the reference calls it."""
    return (format.name, "numpy") if format.name in ("npy", "npz") else (format.name,)


def find_format(name: str) -> Format:
    """The format with this name, ours or that of the reference. Raises a ValueError that lists the formats."""
    for format in FORMATS:
        if format.name == _OTHER_NAMES.get(name, name):
            return format
    raise ValueError(f"unknown format '{name}'.{did_you_mean(name, NAMES)} There are: {', '.join(NAMES)}.")


def of_suffix(suffix: str) -> Format | None:
    """The format whose single files have this suffix."""
    return next((format for format in FORMATS if suffix in format.suffixes), None)


def of_beginning(head: bytes) -> Format | None:
    """The format of a file that begins with these bytes."""
    return next((format for format in FORMATS if format.begins(head)), None)


def of_index(name: str) -> Format | None:
    """The format of the files that an index of this name lists."""
    listed = re.fullmatch(r".+(\.\w+)\.index(?:\.\w+)?\.json", name)
    return None if listed is None else of_suffix(listed[1])


def of_folder(folder: str, names: Sequence[str]) -> Format | None:
    """The format of the checkpoint in a folder that holds `names`."""
    return next((format for format in FORMATS if format.folder and format.recognises(folder, names)), None)


def carry_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of an input as an output takes it over. What the input holds beside tensors may be private (a run's
    arguments, a key), so of its values none is copied to a header."""
    return {key: text for key, text in metadata.items() if key != _LEFT_OUT}


def read_options(format: Format, given: Mapping[str, object]) -> dict[str, object]:
    """The values of a format's own options. Raises a ValueError that names the wrong key and the reason."""
    values = {}
    for key, value in given.items():
        if key not in format.options:
            known = ", ".join(format.options)
            what = f"Those of {format.name} are: {known}." if known else f"{format.name} has none."
            raise ValueError(f"unknown option '{key}'.{did_you_mean(key, format.options)} {what}")
        option = format.options[key]
        try:
            values[key] = option.read(value)
        except ValueError as bad:
            raise ValueError(f"option '{key}': {bad}. Write for example `{key}: {option.example}`.") from bad
    return values
