"""Reading what `torch.save` wrote: `.pt`, `.pth` and `.bin` files, and folders of them with an index.

The pickle in a file tells where each tensor lies (see `pickles.py`), and its bytes are read from there, so that neither
torch nor memory for the whole is needed. That goes for the zip archives that torch writes since version 1.6, and for
what it wrote before.

Nested containers give dotted names (`optimizer.state.0.exp_avg`). If the outermost has a key `state_dict`, as trainers
write it, its tensors go by their names in there, and all else is left out. The header names what was left out, without
its values.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Header, TensorInfo
from brainsurgery_jax.store.descriptors import Descriptors
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import TORCH_SUFFIXES, TRAINER_FILES, suffix_of
from brainsurgery_jax.store.pickles import Storage, Tensor, unpickled
from brainsurgery_jax.store.positioned import read_bytes
from brainsurgery_jax.store.safetensors_folder import check_placement, indexed_files, merge
from brainsurgery_jax.store.safetensors_header import AGAIN
from brainsurgery_jax.store.strided import Laid, StridedSource
from brainsurgery_jax.store.zip_members import Window, data_offset, is_stored, zip_failures

INDEX = "pytorch_model.bin.index.json"
WEIGHTS = "pytorch_model.bin"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_DEEPEST, _MOST = 100, 1_000_000  # what is deeper or more is no checkpoint, but a trap for its readers


class Placed(NamedTuple):
    """A tensor in one file: where it is, how its elements lie."""

    info: TensorInfo
    laid: Laid


class File(NamedTuple):
    """What one file tells: its tensors, in its order, and what it holds beside them."""

    tensors: Mapping[str, Placed]
    left_out: Mapping[str, str]


def open_torch(path: str) -> StridedSource:
    """The tensors of a file, or of a folder."""
    files, weight_map = torch_files(path) if os.path.isdir(path) else ([path], None)
    with ExitStack() as on_failure:
        descriptors = Descriptors(files, os.O_RDONLY, watch=True)
        on_failure.callback(descriptors.close)
        found = [_read(descriptors, number, file) for number, file in enumerate(files)]
        shards = [{name: placed.info for name, placed in file.tensors.items()} for file in found]
        if weight_map is not None:
            check_placement(os.path.join(path, INDEX), files, weight_map, shards)
        left_out = {name: value for file in found for name, value in file.left_out.items()}
        header = Header(path, tuple(files), merge(files, shards, INDEX), {}, left_out=left_out)
        laid = {name: placed.laid for file in found for name, placed in file.tensors.items()}
        source = StridedSource(header, descriptors, laid)
        on_failure.pop_all()
    return source


def torch_files(folder: str) -> tuple[list[str], dict[str, str] | None]:
    """The torch files of a folder by name, and the file of every tensor if there is an index. What trainers keep beside
    the weights does not count."""
    with os_failures(folder, "list the folder"):
        names = sorted(os.listdir(folder))
    if INDEX in names:
        return indexed_files(folder, INDEX)
    if WEIGHTS in names:
        return [os.path.join(folder, WEIGHTS)], None
    files = [n for n in names if suffix_of(n) in TORCH_SUFFIXES and not n.startswith(TRAINER_FILES)]
    if not files:
        raise StoreError(folder, "holds what a trainer keeps beside a model, but no model", remedy="Name a file of it.")
    return [os.path.join(folder, name) for name in files], None


def _read(descriptors: Descriptors, number: int, path: str) -> File:
    with descriptors.lease(number) as fd, os_failures(path, "read the header"), zip_failures(path, "archive"):
        window = Window(fd, 0, os.fstat(fd).st_size, path=path)
        saved = read_archive if read_bytes(fd, min(4, window.nbytes), 0, path=path) == b"PK\x03\x04" else _read_old
        root, place = saved(window, path)
    tensors, left_out = _flat(root, Path(path).stem, path)
    return File({name: placed(name, t, place, number, path) for name, t in tensors.items()}, left_out)


def placed(name: str, tensor: Tensor, place: Callable[[Storage], tuple[int, int]], number: int, path: str) -> Placed:
    """Where a tensor is; it must be inside of its storage, and the storage inside of the file."""
    offset, nbytes = place(tensor.storage)
    itemsize = tensor.aval.dtype.bits // 8
    start = tensor.start * itemsize
    if start + tensor.laid.reach(tensor.aval.shape) * itemsize > nbytes:
        problem = f"{tensor.aval} is said to be in a storage of {nbytes} bytes, and goes beyond it"
        raise StoreError(path, problem, tensor=name, remedy=AGAIN)
    return Placed(TensorInfo(tensor.aval, number, offset + start), tensor.laid)


# --- The two kinds of file --------------------------------------------------------------------------------------------

Found = tuple[Any, Callable[[Storage], tuple[int, int]]]
"""The object that was saved, and where the bytes of a storage lie: offset and number."""


def read_archive(window: Window, path: str) -> Found:
    """A zip archive: a pickle, and a member for each storage."""
    with zipfile.ZipFile(io.BufferedReader(window)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise StoreError(path, "is a zip archive, but not one of torch.save: it has no data.pkl", remedy=AGAIN)
        base = pickles[0].removesuffix("data.pkl")
        if f"{base}constants.pkl" in members:
            remedy = "Save its tensors: `torch.save(torch.jit.load(PATH).state_dict(), 'model.pt')`."
            raise StoreError(path, "is a TorchScript program, not a checkpoint", remedy=remedy)
        if f"{base}byteorder" in members and archive.read(f"{base}byteorder") != b"little":
            raise _big_endian(path)
        with archive.open(pickles[0]) as file:
            root = unpickled(io.BytesIO(file.read()), path)

    def place(storage: Storage) -> tuple[int, int]:
        member = members.get(f"{base}data/{storage.key}")
        if member is None:
            raise StoreError(path, f"lacks the storage '{storage.key}'", remedy=AGAIN)
        if not is_stored(member):
            remedy = "Unpack the archive, and pack it again without compression: `zip -0 -r`."
            raise StoreError(path, f"the storage '{storage.key}' is compressed, which torch never does", remedy=remedy)
        return window.start + data_offset(window, member, path=path), member.file_size

    return root, place


def _read_old(window: Window, path: str) -> Found:
    """What torch wrote before version 1.6: pickles one after the other, then each storage with its size before it."""
    file = io.BufferedReader(window)
    if file.peek(1)[:1] != b"\x80" or unpickled(file, path) != _OLD_MAGIC:
        raise StoreError(
            path, "is not a file of torch.save", remedy="Give it the suffix of its format, or save it again."
        )
    unpickled(file, path)  # the version of the format
    system = unpickled(file, path)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _big_endian(path)
    storages: list[Storage] = []
    root = unpickled(file, path, storages=storages)
    keys = unpickled(file, path)
    places = _places(window, file.tell(), keys, {s.key: s for s in storages}, path)

    def place(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise StoreError(path, f"lacks the storage '{storage.key}'", remedy=AGAIN)
        return places[storage.key]

    return root, place


def _places(
    window: Window, at: int, keys: Any, storages: Mapping[str, Storage], path: str
) -> dict[str, tuple[int, int]]:
    """Offset and size of each storage: they come in the order of the keys, the number of elements before each."""
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys if isinstance(keys, list) else ()):
        window.seek(at)
        numel = int.from_bytes(window.read(8) or b"", "little")
        if key not in storages or storages[key].numel != numel:
            raise StoreError(path, f"the storage '{key}' is not of the size that is said of it", remedy=AGAIN)
        places[key] = at + 8, numel * storages[key].dtype.bits // 8
        at = sum(places[key])
    if at > window.nbytes:
        raise StoreError(path, f"is cut off: it should have {at} bytes, and has {window.nbytes}", remedy=AGAIN)
    return places


def _big_endian(path: str) -> StoreError:
    remedy = "Load it and save it again on a machine of today."
    return StoreError(path, "was written on a machine of the other byte order", remedy=remedy)


# --- Names ------------------------------------------------------------------------------------------------------------


def _flat(root: Any, stem: str, path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and what is none."""
    if isinstance(root, Tensor):
        return {stem: root}, {}
    if not isinstance(root, Mapping):
        raise StoreError(path, f"holds a {type(root).__name__}, no tensors by name", remedy="Save a dict of tensors.")
    wrapped = isinstance(root.get("state_dict"), Mapping)
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    if wrapped:
        left_out = {str(key): type(value).__name__ for key, value in root.items() if key != "state_dict"}
    for name, leaf in _leaves(root["state_dict"] if wrapped else root, (), path):
        if len(tensors) + len(left_out) > _MOST:
            raise StoreError(path, f"holds more than {_MOST} things", remedy=AGAIN)
        if not isinstance(leaf, Tensor):
            left_out[name] = type(leaf).__name__
        elif name in tensors:
            raise StoreError(path, "two tensors have this name, once the keys are joined by dots", tensor=name)
        else:
            tensors[name] = leaf
    return tensors, left_out


def _leaves(node: Any, keys: tuple[str, ...], path: str) -> Iterator[tuple[str, Any]]:
    """Tensors with their names, and what holds none as one leaf."""
    if len(keys) > _DEEPEST:
        raise StoreError(path, f"is nested deeper than {_DEEPEST} levels", remedy=AGAIN)
    if isinstance(node, Mapping):
        below = node.items()
    elif type(node) in (list, tuple) and any(isinstance(item, Mapping | list | tuple) for item in node):
        below = enumerate(node)
    else:
        yield ".".join(keys), node
        return
    for key, value in below:
        yield from _leaves(value, (*keys, str(key)), path)
