"""Files of Equinox, `tree_serialise_leaves`: the leaves of a model one after the other, each as `numpy.save` writes it.
Format: https://docs.kidger.site/equinox/api/serialisation/

Such a file has no names. They come from a file beside it, `model.eqx.json`, a list with the name of each leaf in their
order; without it leaves are called by their numbers. Before the first array may stand a line of JSON with the
hyperparameters of the model, as the page of Equinox proposes. Line and names travel in the metadata.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from typing import IO, TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.base import Header, Source, TensorInfo, Unread, WriteOptions
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.encoded import EncodedWriter, open_streamed
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.io.local import LocalFile, open_files
from brainsurgery_jax.store.io.strided import Laid, StridedSource
from brainsurgery_jax.store.io.zip_members import Window
from brainsurgery_jax.store.numpy.encode import check_dtypes, write_array
from brainsurgery_jax.store.numpy.source import read_head
from brainsurgery_jax.store.safetensors.header import AGAIN

if TYPE_CHECKING:
    import numpy as np

LEAVES, LINE = "equinox.leaves", "equinox.hyperparameters"
"""Keys of the metadata: the names of the leaves in their order as JSON, and the line before the first array."""

_MAGIC = b"\x93NUMPY"
_LONGEST = 1 << 20
"""Bytes of the line before the first array."""

_NAMES = "Write the names of the leaves, one for each array, as a list of JSON."


def open_source(path: str) -> Source:
    """The leaves of a file, by the names in the file beside it."""
    with ExitStack() as on_failure:
        (opened,) = open_files([path])
        on_failure.callback(opened.close)
        with os_failures(path, "read the file"):
            line = _line(opened)
            found = _arrays(opened, len(line.encode()) + 1 if line else 0)
            names = _names(path, len(found))
        given = names or [str(number) for number in range(len(found))]
        tensors: dict[str, TensorInfo] = {}
        laid: dict[str, Laid] = {}
        for name, (info, how) in zip(given, found, strict=True):
            tensors[name], laid[name] = info, how
        metadata = ({LINE: line} if line else {}) | ({LEAVES: json.dumps(names)} if names else {})
        source = StridedSource(Header(path, (path,), tensors, metadata), [opened], laid)
        on_failure.pop_all()
    return source


def _line(file: LocalFile) -> str:
    """The line of JSON before the first array; empty if there is none."""
    head = Window(file).bytes_at(0, _LONGEST)
    if head.startswith(_MAGIC) or not head:
        return ""
    line, end, rest = head.partition(b"\n")
    try:
        text = line.decode()
        parse_json(text)
    except ValueError as error:
        raise StoreError(file.name, "begins with neither an array nor a line of JSON", remedy=AGAIN) from error
    if not end or (rest and not rest.startswith(_MAGIC)):
        raise StoreError(file.name, "has no array after its first line", remedy=AGAIN)
    return text


def _arrays(file: LocalFile, at: int) -> list[tuple[TensorInfo, Laid]]:
    """The arrays from a byte on, where they lie and how."""
    found: list[tuple[TensorInfo, Laid]] = []
    stream = io.BufferedReader(Window(file))
    while at < file.size:
        stream.seek(at)
        head = read_head(stream, "")
        number = str(len(found))
        if isinstance(head, str):
            raise StoreError(file.name, f"holds {head}, not numbers", tensor=number, remedy=AGAIN)
        if isinstance(head, Unread):
            raise StoreError(file.name, head.why, tensor=number, remedy=head.remedy)
        found.append((TensorInfo(head.aval, 0, head.start), head.laid))
        at = head.start + prod(head.aval.shape) * head.aval.dtype.bits // 8
    if at > file.size:
        problem = f"is cut off: {at - file.size} bytes are missing at its end"
        raise StoreError(file.name, problem, tensor=str(len(found) - 1), remedy=AGAIN)
    return found


def _names(path: str, number: int) -> list[str]:
    """The names of the leaves from the file beside it; none if there is no such file."""
    place = f"{path}.json"
    with os_failures(place, "read the names"):
        try:
            raw = read_regular(place)
        except FileNotFoundError:
            return []
    try:
        names: object = parse_json(raw)
    except ValueError as error:
        raise StoreError(place, "is not valid JSON", remedy=_NAMES) from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise StoreError(place, "is no list of names", remedy=_NAMES)
    if len(names) != number or len(set(names)) != number:
        problem = f"gives {len(set(names))} names to the {number} leaves of {os.path.basename(path)}"
        raise StoreError(place, problem, remedy=_NAMES)
    return names


def _order(names: Mapping[str, object], metadata: Mapping[str, str]) -> list[str] | None:
    """The names in the order of the leaves; None if that is not known."""
    try:
        told = parse_json(metadata.get(LEAVES, "null"))
    except ValueError:
        told = None
    if isinstance(told, list) and all(isinstance(n, str) for n in told) and sorted(told) == sorted(names):
        return told
    numbers = [str(number) for number in range(len(names))]
    return numbers if names.keys() == set(numbers) else None


def check_output(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError unless the order of the leaves is known, and each is of a dtype that numpy's files tell."""
    if _order(avals, options.metadata) is None:
        remedy = "Rename the tensors to `0`, `1`, `2` and so on, in the order of the leaves of the model."
        raise StoreError(path, "holds leaves without names, and their order is not known", remedy=remedy)
    check_dtypes(path, avals)


def encode_eqx(file: IO[bytes], arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes the line of hyperparameters, if there is one, and each array after the other."""
    order = _order(arrays, options.metadata)
    assert order is not None, "checked before"
    if line := options.metadata.get(LINE):
        file.write(f"{line}\n".encode())
    for name in order:
        write_array(file, arrays[name])


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> EncodedWriter:
    """The writer of an output."""
    return open_streamed(staged, avals, options, encode_eqx)
