"""The table of formats. Nothing else in the package knows one format from another: what differs stands in a row here.

To add a format, write its source and its writer (or an encoder for `encoded.EncodedWriter`), and add a row. Rows import
what they need when they are used, so that the table costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import FileCounts, Source, WriteOptions, Writer
from brainsurgery_jax.store.folder import ADAPTER_CONFIG, TORCH_SUFFIXES, holds_adapter, suffix_of
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.sizes import parse_size


class Option(NamedTuple):
    """A key of an output's `options:`. `read` gives its value; it raises ValueError, saying what was expected."""

    doc: str
    example: str
    read: Callable[[Any], Any]


class Format(NamedTuple):
    """A checkpoint format.

    - `suffixes` of its single files (none if it has only folders), and whether it may be a `folder`;
    - `recognises(folder, names)`: whether a folder with these names in it is such a checkpoint;
    - `open`, `write`: its source and its writer; `check` raises StoreError for whatever would stop the writer and is
      known beforehand: a tensor, a name, metadata or an option that it cannot hold;
    - `options` that a plan may give for it alone; `shards`: whether a folder is cut into files by size;
    - `encoded`: written by way of a scratch file, so that it takes its space twice while it is made;
    - `cut`: into how many files it will be written, and how many of these a source holds as they stand;
    - `trees`: whether it holds trees; of others notes are kept in the metadata, `metadata_bytes` of them at most (None:
      any number);
    - `config_file`: the file beside the tensors that must be there for others to load them.
    """

    name: str
    suffixes: tuple[str, ...]
    folder: bool
    recognises: Callable[[str, Sequence[str]], bool]
    open: Callable[[str], Source]
    write: Callable[[StagedOutput, Mapping[str, Aval], WriteOptions], Writer]
    check: Callable[[str, Mapping[str, Aval], WriteOptions], None]
    options: Mapping[str, Option] = {}
    shards: bool = False
    encoded: bool = False
    cut: Callable[[Mapping[str, Aval], WriteOptions], FileCounts] | None = None
    trees: bool = False
    metadata_bytes: int | None = 0
    config_file: str = ""


def _later(place: str) -> Callable[..., Any]:
    """A function of this package, `package.module.name`, that is imported when it is called."""
    module, _, name = place.rpartition(".")
    return lambda *given: getattr(import_module(f"brainsurgery_jax.store.{module}"), name)(*given)


def _write_with(place: str) -> Callable[[StagedOutput, Mapping[str, Aval], WriteOptions], Writer]:
    """The `write` of a format that has an encoder, `package.module.name`."""

    def write(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> Writer:
        from brainsurgery_jax.store.io.encoded import EncodedWriter

        if not isinstance(staged, Staged):
            problem = "this format is written to local files only, safetensors to any place"
            raise StoreError(staged.destination, problem)
        return EncodedWriter(staged, avals, options, _later(place))

    return write


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {value!r}")
    return value


def _version(value: Any) -> str:
    if value not in ("v0", "v1"):
        raise ValueError(f"expected v0 or v1, got {value!r}")
    return value


def _chunk(value: Any) -> int | None:
    if not isinstance(value, str):
        raise ValueError(f"expected a size, got {value!r}")
    return parse_size(value)


def _is_file_of(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file has one of these suffixes, or is an index of such files."""
    return suffix_of(name) in suffixes or any(name.endswith(f"{suffix}.index.json") for suffix in suffixes)


def _names(value: Any) -> Any:
    if value != "all" and not (isinstance(value, list) and all(isinstance(name, str) and name for name in value)):
        raise ValueError(f"expected a list of names, or all, got {value!r}")
    return value


_NESTED = {
    "nested": Option("Whether tensors go back into the containers that their input has.", "true", _flag),
    "keep": Option("Values of the input to write beside them, by name, or all; implies nested.", "[epoch]", _names),
}

SAFETENSORS = Format(
    name="safetensors",
    suffixes=(".safetensors",),
    folder=True,
    recognises=lambda folder, names: any(_is_file_of(name, {".safetensors"}) for name in names),
    open=_later("safetensors.source.open_safetensors"),
    write=_later("safetensors.writer.write"),
    check=_later("safetensors.layout.check_storable"),
    shards=True,
    cut=_later("safetensors.shards.cut_of"),
    metadata_bytes=None,
)

TORCH = Format(
    name="torch",
    suffixes=(".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar"),
    folder=True,
    recognises=lambda folder, names: any(_is_file_of(name, TORCH_SUFFIXES) for name in names),
    open=_later("torch.source.open_torch"),
    write=_write_with("torch.encode.encode_torch"),
    check=_later("torch.encode.check_torch"),
    options={"bare": Option("Whether the file is its one tensor, without a dict around it.", "true", _flag), **_NESTED},
    encoded=True,
)

PEFT = Format(
    name="peft",
    suffixes=(),
    folder=True,
    recognises=lambda folder, names: holds_adapter(names),
    open=_later("peft.open_peft"),
    write=_later("peft.write"),
    check=_later("safetensors.layout.check_storable"),
    options={"config": Option("What to set in adapter_config.json.", "{r: 8}", _mapping)},
    config_file=ADAPTER_CONFIG,
    metadata_bytes=None,
)

DCP = Format(
    name="dcp",
    suffixes=(),
    folder=True,
    recognises=_later("torch.dcp.recognises"),
    open=_later("torch.dcp.open_dcp"),
    write=_write_with("torch.dcp_encode.encode_dcp"),
    check=_later("torch.encode.check_torch"),
    options=_NESTED,
    encoded=True,
)

NPY = Format(
    name="npy",
    suffixes=(".npy",),
    folder=False,
    recognises=lambda folder, names: False,
    open=_later("numpy.source.open_npy"),
    write=_write_with("numpy.encode.encode_npy"),
    check=_later("numpy.encode.check_npy"),
    encoded=True,
)

NPZ = Format(
    name="npz",
    suffixes=(".npz",),
    folder=False,
    recognises=lambda folder, names: False,
    open=_later("numpy.source.open_npz"),
    write=_write_with("numpy.encode.encode_npz"),
    check=_later("numpy.encode.check_npz"),
    options={"compression": Option("Whether the arrays are compressed.", "true", _flag)},
    encoded=True,
    metadata_bytes=65535,
)

ORBAX = Format(
    name="orbax",
    suffixes=(),
    folder=True,
    recognises=_later("orbax.folder.recognises"),
    open=_later("orbax.source.OrbaxSource"),
    write=_write_with("orbax.encode.encode"),
    check=_later("orbax.encode.check"),
    options={
        "version": Option("The API whose layout is written: v1, or v0 with the tree at the top.", "v0", _version),
        "compression": Option("Whether chunks are compressed.", "true", _flag),
        "chunk": Option("Largest chunk of a tensor.", "64MB", _chunk),
    },
    encoded=True,
    trees=True,
    metadata_bytes=None,
)

FORMATS: tuple[Format, ...] = (PEFT, SAFETENSORS, ORBAX, DCP, TORCH, NPZ, NPY)
"""Every format. Of those that recognise a folder the first one opens it."""

NAMES = tuple(format.name for format in FORMATS)
_LEFT_OUT = "brainsurgery.left_out"  # what versions before 1.0 copied of an input, values included
_OTHER_NAMES = {"numpy": "npy"}


def names_of(format: Format) -> tuple[str, ...]:
    """The names of a format: its own, and what the reference calls it."""
    return (format.name, "numpy") if format.name in ("npy", "npz") else (format.name,)


def find_format(name: str) -> Format:
    """The format of that name, or that the reference calls so. ValueError says which there are."""
    for format in FORMATS:
        if format.name == _OTHER_NAMES.get(name, name):
            return format
    raise ValueError(f"unknown format '{name}'.{did_you_mean(name, NAMES)} There are: {', '.join(NAMES)}.")


def of_suffix(suffix: str) -> Format | None:
    """The format whose single files have this suffix."""
    return next((format for format in FORMATS if suffix in format.suffixes), None)


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


def read_options(format: Format, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a format's own options. ValueError says which key is wrong, and why."""
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
