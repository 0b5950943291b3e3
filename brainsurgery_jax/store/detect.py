"""From a path to a store: which source reads it, and what an output path means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from brainsurgery_jax.errors import StoreError, nearest_word
from brainsurgery_jax.store import formats
from brainsurgery_jax.store.address import (
    HUB_NAME,
    MARK,
    expand_hub_name,
    is_remote,
    is_repository,
    parse_address,
    scheme_of,
    split_sum,
)
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import WEIGHT_SUFFIXES, suffix_of
from brainsurgery_jax.store.formats import FORMATS, SAFETENSORS, Format
from brainsurgery_jax.store.io.files import read_bytes
from brainsurgery_jax.store.io.local import LocalPlace
from brainsurgery_jax.store.leftovers import recover
from brainsurgery_jax.store.selection import select
from brainsurgery_jax.store.sizes import parse_size as parse_size
from brainsurgery_jax.store.unread_formats import HEAD, refuse_unread_file, refuse_unread_folder
from brainsurgery_jax.wording import few


def open_source(text: str, format: str | None = None) -> Source:
    """The source for a checkpoint file or folder, or a part of it (see `address.py`); `~` is the home folder. `format`
    names the format of a file whose suffix does not show it. Raises ValueError for an unknown format."""
    address = parse_address(text)
    source = _open(expand_hub_name(address.path), format)
    with ExitStack() as on_failure:
        on_failure.callback(source.close)
        selected = select(source, address)
        on_failure.pop_all()
    return selected


def _open(path: str, format: str | None) -> Source:
    """The source of a whole checkpoint."""
    if (both := split_sum(path)) is not None:
        from brainsurgery_jax.store.delta.source import open_sum

        return open_sum(path, open_source(both[0], format), both[1])
    return _open_remote(path) if is_remote(path) else _open_local(path, format)


def _open_local(path: str, format: str | None) -> Source:
    recover(path)
    return _format_of(path, format).open(path)


def _open_remote(url: str) -> Source:
    from brainsurgery_jax.store.remote.source import open_remote  # few plans need it, and it imports what connects

    return open_remote(url)


def _format_of(path: str, format: str | None) -> Format:
    if not os.path.exists(path):
        raise _missing(path)
    if os.path.isdir(path):
        return _format_of_folder(path)
    if not os.path.isfile(path):
        raise StoreError(path, "is neither a file nor a folder", remedy=f"Name a folder, or {_some_file()}.")
    suffix = suffix_of(path)
    told = formats.of_index(os.path.basename(path)) or formats.of_suffix(suffix)
    if format is not None and (told is None or format not in formats.names_of(told)):
        told = formats.find_format(format)
    if told is None:
        head = _first_bytes(path)
        told = formats.of_beginning(head)
        if told is None:
            refuse_unread_file(path, head)
    if told is None:
        remedy = f"Name {_some_file()}. If it is one of these, give it that suffix."
        raise StoreError(path, f"has the suffix '{suffix}', which tells no format that can be read", remedy=remedy)
    return told


def _first_bytes(path: str) -> bytes:
    with os_failures(path, "read the file"), closing(LocalPlace(path).open("")) as file:
        return read_bytes(file, min(file.size, HEAD), 0)


def _some_file() -> str:
    suffixes = [suffix for format in FORMATS for suffix in format.suffixes]
    return "a file that ends in " + " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))


def _format_of_folder(folder: str) -> Format:
    with os_failures(folder, "list the folder"):
        names = sorted(os.listdir(folder))
    format = formats.of_folder(folder, names)
    if format is None:
        found = f"it holds {few(names, 8)}" if names else "it is empty"
        below = [place for name in names if _holds_one(place := os.path.join(folder, name))]
        known = ", ".join(format.name for format in FORMATS if format.folder)
        remedy = f"Name a folder with a checkpoint at its top ({known}), or one file."
        if below:
            remedy = f"There are checkpoints in folders below. Name one: {few(below, 8)}."
        elif files := [place for name in names if _is_one(place := os.path.join(folder, name))]:
            remedy = f"There are files in it that may be checkpoints. Name one: {few(files, 8)}."
        else:
            refuse_unread_folder(folder, names)
        raise StoreError(folder, f"holds no checkpoint at its top: {found}", remedy=remedy)
    return format


def _holds_one(folder: str) -> bool:
    """Whether a path is a folder with a checkpoint in it."""
    if not os.path.isdir(folder):
        return False
    with os_failures(folder, "list the folder"):
        return formats.of_folder(folder, sorted(os.listdir(folder))) is not None


def _is_one(path: str) -> bool:
    """Whether a path is a file whose format is shown by its first bytes and not by its name."""
    return os.path.isfile(path) and not suffix_of(path) and formats.of_beginning(_first_bytes(path)) is not None


def _missing(path: str) -> StoreError:
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.islink(path):
        return StoreError(path, "is a link to a file that is not there", remedy="Restore the file, or fix the link.")
    if not os.path.isdir(folder):
        hub = f" A model of the Hugging Face hub is named 'hf://{path}'." if HUB_NAME.fullmatch(path) else ""
        return StoreError(path, f"does not exist, nor does the folder {folder}", remedy=f"Check the path.{hub}")
    head, colon, part = path.rpartition(":")
    if colon and part and os.path.exists(head):
        return StoreError(path, f"does not exist. Did you mean '{head}{MARK}{part}'?")
    found = nearest_word(name, (other for other in os.listdir(folder) if not other.startswith(".")))
    near = "" if found is None else f" Did you mean '{os.path.join(os.path.dirname(path.rstrip('/')), found)}'?"
    remedy = "" if os.path.isabs(path) else f"Relative paths start at the current folder, {os.getcwd()}."
    return StoreError(path, f"does not exist.{near}", remedy=remedy)


class OutputKind(NamedTuple):
    """What an output path means: where, one file or a folder, the format with its own options, and the shard size if
    one was given."""

    path: str
    directory: bool
    format: Format = SAFETENSORS
    shard_bytes: int | None = None
    options: Mapping[str, Any] = {}


def output_kind(path: str, format: Format | None = None, shard: str | None = None) -> OutputKind:
    """The one path rule: the suffix decides; without one, at an existing folder, or with a final slash it is a folder.

    A folder whose name has a dot (`llama-3.1`) needs the slash or `format`. Raises ValueError with the mistake.
    """
    if not path.strip():
        raise ValueError(f"the output path is empty. Name a folder, or {_some_file()}.")
    place = path if is_remote(path) else os.path.expanduser(path)
    if not is_remote(path):
        recover(place)
    elif (scheme := scheme_of(path)) in ("http", "https"):
        raise ValueError(
            f"'{path}' cannot be written: {scheme}:// is read only. Write to a folder, and upload it by the tools of "
            "its host."
        )
    directory = is_repository(path) or _is_directory(place, explicit=format is not None)
    made = format or (SAFETENSORS if directory else formats.of_suffix(suffix_of(place)))
    assert made is not None, "a file has a suffix that shows the format"
    _check_shape(path, directory, made)
    _check_name(os.path.basename(place.rstrip("/" + os.sep)))
    shard_bytes = None if shard is None else parse_size(shard)
    if shard_bytes is not None:
        _check_sharded(path, directory, made)
    return OutputKind(place, directory, made, shard_bytes)


MOST_NAME = 200
"""Bytes of the name of an output: file systems hold 255, and it is written under a longer one beside its place."""


def _check_name(name: str) -> None:
    if (size := len(os.fsencode(name))) > MOST_NAME:
        raise ValueError(
            f"the name '{name[:40]}...' has {size} bytes, and an output can have {MOST_NAME}. Choose a shorter one."
        )


def _check_shape(path: str, directory: bool, format: Format) -> None:
    """Whether the format is written, and can be a folder, or a file of that suffix."""
    if format.writing is None:
        raise ValueError(f"{format.name} is read, and not written. Write orbax to a folder, or a file: {_some_file()}.")
    if directory and not format.folder:
        name = f"{path.rstrip('/')}{format.suffixes[0]}"
        raise ValueError(f"'{path}' would be a folder, and {format.name} is one file. Write to '{name}'.")
    suffix = suffix_of(path)
    if not directory and suffix not in format.suffixes:
        stem = path[: -len(suffix)]
        other = f"'{stem}{format.suffixes[0]}'" if format.suffixes else f"the folder '{stem}/'"
        raise ValueError(f"'{path}' ends in {suffix}, and the format is {format.name}. Write to {other}.")


def _check_sharded(path: str, directory: bool, format: Format) -> None:
    if not directory:
        stem = path[: -len(suffix_of(path))]
        raise ValueError(f"'{path}' is one file, and a shard size needs a folder. Drop `shard`, or write to '{stem}/'.")
    if not format.shards:
        raise ValueError(f"{format.name} is not cut into shards by size. Drop `shard`.")


def _is_directory(path: str, *, explicit: bool) -> bool:
    suffix = suffix_of(path)
    if path.endswith(("/", os.sep)) or not suffix:
        return True
    if os.path.isdir(path):
        meant = formats.of_suffix(suffix)
        if meant not in (None, SAFETENSORS) and not explicit:
            raise ValueError(
                f"'{path}' is a folder, and its name ends as a file of {meant.name} does. "
                f"To write safetensors into the folder say '{path}/'; for a file take another name."
            )
        return True
    if formats.of_suffix(suffix) is not None:
        return False
    if suffix in WEIGHT_SUFFIXES:
        stem = path[: -len(suffix)]
        raise ValueError(
            f"'{path}' ends in {suffix}, which cannot be written. Write to '{stem}.safetensors', or to a folder."
        )
    if explicit:
        return True
    raise ValueError(
        f"'{path}' ends in '{suffix}', which tells no format. For a folder of that name write '{path}/' or add "
        f"`format: safetensors`; for a file use {_some_file().removeprefix('a file that ends in ')}."
    )


def holds_pickles(path: str, format: str | None = None) -> bool:
    """Whether a checkpoint is read by unpickling: a torch file, a DCP folder, an adapter that torch wrote. Raises
    StoreError for what is no checkpoint."""
    found = _format_of(path, format)
    if found is formats.PEFT:
        return not any(name.endswith(".safetensors") for name in os.listdir(path))
    return found in (formats.TORCH, formats.DCP)
