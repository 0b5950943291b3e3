"""Reading what `torch.save` wrote: `.pt`, `.pth` and `.bin` files, and folders of them with an index.

The pickle in a file tells where each tensor lies (see `pickles.py`), and its bytes are read from there, so that neither
torch nor memory for the whole is needed. That goes for the zip archives that torch writes since version 1.6, and for
what it wrote before.

Nested containers give dotted names (`optimizer.state.0.exp_avg`). If the outermost has a key `state_dict`, as trainers
write it, that is the part which is read unless another is named (see `address.py`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Header, Nesting, Note, TensorInfo, Unread
from brainsurgery_jax.store.completeness import choose
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import TORCH_SUFFIXES
from brainsurgery_jax.store.index_files import merge, place
from brainsurgery_jax.store.io.files import File
from brainsurgery_jax.store.io.local import open_files
from brainsurgery_jax.store.io.strided import Laid, StridedSource
from brainsurgery_jax.store.io.zip_members import (
    Window,
    WindowBytes,
    data_offset,
    is_stored,
    refuse_encrypted,
    zip_failures,
)
from brainsurgery_jax.store.key_paths import Path as KeyPath
from brainsurgery_jax.store.key_paths import name_of
from brainsurgery_jax.store.safetensors.header import AGAIN
from brainsurgery_jax.store.torch.pickle_machine import Name, Object
from brainsurgery_jax.store.torch.pickles import Storage, Tensor, Unpickler, unpickle
from brainsurgery_jax.store.torch.tree import Leaf, TorchTree, grow
from brainsurgery_jax.wording import few

WEIGHTS = "pytorch_model.bin"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_WRAPPER = "state_dict"
_MODELS = ("model", "model_state_dict", "module", "net", "network", "weights")
"""What else trainers call the state dict of a model."""

_OTHER_KEYS = "Load it with torch, and save it with other keys."
_STATE_DICT = "Load it where its classes are known, and save its tensors alone: `torch.save(model.state_dict(), PATH)`."


class PlacedTensor(NamedTuple):
    """A tensor in one file: where it is, how its elements lie."""

    info: TensorInfo
    laid: Laid


class TorchFile(NamedTuple):
    """What one file tells: its tensors, in its order, those that cannot be read, and what a header says beside them."""

    tensors: Mapping[str, PlacedTensor]
    nesting: Nesting
    left_out: Mapping[str, str]
    unread: Mapping[str, Unread]
    parts: tuple[str, ...]
    notes: tuple[Note, ...]


def open_torch(path: str) -> StridedSource:
    """The tensors of a file, or of a folder, or of the files that an index lists."""
    chosen = choose(path, TORCH_SUFFIXES)
    files, notes = chosen.files, chosen.notes
    with ExitStack() as on_failure:
        opened = open_files(files)
        for one in opened:
            on_failure.callback(one.close)
        found = [_read(number, one) for number, one in enumerate(opened)]
        shards: Sequence[Mapping[str, TensorInfo]] = [{n: p.info for n, p in file.tensors.items()} for file in found]
        if chosen.listed is not None:
            shards, more = place(chosen.listed, files, shards)
            notes = (*notes, *more)
        header = _header(path, files, merge(files, shards), found)
        laid = {name: p.laid for file in found for name, p in file.tensors.items() if name in header.tensors}
        source = StridedSource(replace(header, notes=(*notes, *header.notes)), opened, laid)
        on_failure.pop_all()
    return source


def _header(path: str, files: Sequence[str], tensors: Mapping[str, TensorInfo], found: Sequence[TorchFile]) -> Header:
    def join(of: Callable[[TorchFile], Mapping[Any, Any]]) -> dict[Any, Any]:
        return {key: value for file in found for key, value in of(file).items()}

    return Header(
        path,
        tuple(files),
        tensors,
        {},
        left_out=join(lambda file: file.left_out),
        unread=join(lambda file: file.unread),
        parts=found[0].parts if all(file.parts == found[0].parts for file in found) else (),
        notes=tuple(note for file in found for note in file.notes),
        nesting=Nesting(
            join(lambda file: file.nesting.kinds),
            join(lambda file: file.nesting.tensors),
            join(lambda file: file.nesting.values),
            [path for file in found for path in file.nesting.order],
        ),
    )


def _read(number: int, opened: File) -> TorchFile:
    path = opened.name
    with os_failures(path, "read the header"), zip_failures(path, "archive"):
        window = Window(opened)
        saved = read_archive if window.bytes_at(0, 4) == b"PK\x03\x04" else _read_old
        root, place = saved(window, path)
    return _file(_tree(root, path), path, lambda name, tensor: place_tensor(name, tensor, place, number, path))


def place_tensor(
    name: str, tensor: Tensor, place: Callable[[Storage], tuple[int, int]], number: int, path: str
) -> PlacedTensor:
    """Where a tensor is; it must be inside of its storage, and the storage inside of the file."""
    offset, nbytes = place(tensor.storage)
    itemsize = tensor.aval.dtype.bits // 8
    start = tensor.start * itemsize
    if start + tensor.laid.reach(tensor.aval.shape) * itemsize > nbytes:
        problem = f"{tensor.aval} is said to be in a storage of {nbytes} bytes, and goes beyond it"
        raise StoreError(path, problem, tensor=name, remedy=AGAIN)
    return PlacedTensor(TensorInfo(tensor.aval, number, offset + start), tensor.laid)


# --- The two kinds of file --------------------------------------------------------------------------------------------

Found = tuple[object, Callable[[Storage], tuple[int, int]]]
"""The object that was saved, and where the bytes of a storage lie: offset and number."""


def read_archive(window: Window, path: str) -> Found:
    """A zip archive: a pickle, and a member for each storage."""
    with zipfile.ZipFile(io.BufferedReader(window)) as archive:
        refuse_encrypted(archive, path)
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise StoreError(path, "is a zip archive, but not one of torch.save: it has no data.pkl", remedy=AGAIN)
        base = pickles[0].removesuffix("data.pkl")
        if f"{base}constants.pkl" in members:
            remedy = "Save its tensors: `torch.save(torch.jit.load(PATH).state_dict(), 'model.pt')`."
            raise StoreError(path, "is a TorchScript program, not a checkpoint", remedy=remedy)
        _find(window, members[pickles[0]], "pickle", path)
        order = members.get(f"{base}byteorder")
        if order is not None:
            _find(window, order, "byte order", path)
        if order is not None and archive.read(order) != b"little":
            raise _big_endian(path)
        root = unpickle(archive.read(pickles[0]), path)

    def place(storage: Storage) -> tuple[int, int]:
        member = members.get(f"{base}data/{storage.key}")
        if member is None:
            raise StoreError(path, f"lacks the storage '{storage.key}'", remedy=AGAIN)
        return window.start + _find(window, member, f"storage '{storage.key}'", path), member.file_size

    return root, place


def _find(window: Window, member: zipfile.ZipInfo, what: str, path: str) -> int:
    """Where the bytes of a member begin. Raises StoreError if they are compressed, or not inside the archive."""
    if not is_stored(member):
        remedy = "Unpack the archive, and pack it again without compression: `zip -0 -r`."
        raise StoreError(path, f"the {what} is compressed, which torch never does", remedy=remedy)
    return data_offset(window, member, path=path)


def _read_old(window: Window, path: str) -> Found:
    """What torch wrote before version 1.6: pickles one after the other, then each storage with its size before it."""
    pickles = Unpickler(WindowBytes(window), path)
    if window.bytes_at(0, 1) != b"\x80" or pickles.load() != _OLD_MAGIC:
        raise StoreError(
            path, "is not a file of torch.save", remedy="Give it the suffix of its format, or save it again."
        )
    pickles.load()  # the version of the format
    system = pickles.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _big_endian(path)
    root = pickles.load()
    keys = pickles.load()
    places = _places(window, pickles.position, keys, {s.key: s for s in pickles.storages}, path)

    def place(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise StoreError(path, f"lacks the storage '{storage.key}'", remedy=AGAIN)
        return places[storage.key]

    return root, place


def _places(
    window: Window, at: int, keys: object, storages: Mapping[str, Storage], path: str
) -> dict[str, tuple[int, int]]:
    """Offset and size of each storage: they come in the order of the keys, the number of elements before each."""
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys if type(keys) is list and all(type(key) in (str, int) for key in keys) else ()):
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
    remedy = "Load it with torch, and save it again: `torch.save(torch.load(PATH), 'model.pt')`."
    return StoreError(path, "was written on a machine of the other byte order", remedy=remedy)


# --- Names ------------------------------------------------------------------------------------------------------------


def _tree(root: object, path: str) -> TorchTree:
    """The entries of what was saved. A tensor alone is called like its file."""
    if isinstance(root, Tensor | Unread):
        return TorchTree([Leaf((Path(path).stem,), root)])
    if isinstance(root, Object) and root.entries is None and root.items is None:
        problem = f"holds an object of '{root}', no tensors by name; nothing was run"
        raise StoreError(path, problem, remedy=_STATE_DICT)
    if type(root) not in (dict, list, tuple, Object):
        raise StoreError(path, f"holds a {type(root).__name__}, no tensors by name", remedy="Save a dict of tensors.")
    return grow(root, path)


def _file(tree: TorchTree, path: str, place: Callable[[str, Tensor], PlacedTensor]) -> TorchFile:
    """What a header tells of a tree."""
    tensors: dict[str, PlacedTensor] = {}
    paths: dict[str, KeyPath] = {}
    unread: dict[str, Unread] = {}
    values: dict[KeyPath, object] = {}
    for at, leaf in tree.leaves:
        name = name_of(at)
        if not isinstance(leaf, Tensor | Unread):
            values[at] = leaf
            continue
        if name in paths:
            unread[name] = Unread("two tensors have this name, once the keys are joined by dots", _OTHER_KEYS)
        paths[name] = at
        if isinstance(leaf, Unread):
            unread[name] = leaf
        else:
            tensors[name] = place(name, leaf)
    beside, unread = _split_unread(tensors, unread, paths)
    notes = (*_unread_notes(beside, path), *_note_hidden(tree.hidden, path))
    if not tensors and not unread and (tree.hidden or _objects(values)):
        classes = sorted({str(value) for value in (*tree.hidden.values(), *_objects(values))})
        problem = f"holds no tensor, but objects, which are not made: {', '.join(classes[:6])}. Nothing was run"
        raise StoreError(path, problem, remedy=_STATE_DICT)
    left_out = {name_of(at): _describe(value) for at, value in values.items()}
    return TorchFile(
        tensors,
        Nesting(tree.kinds, paths, values, [at for at, _ in tree.leaves]),
        left_out,
        unread,
        _parts(paths),
        notes,
    )


def _objects(values: Mapping[KeyPath, object]) -> list[Object]:
    return [value for value in values.values() if isinstance(value, Object) and isinstance(value.kind, Name)]


def _describe(value: object) -> str:
    return str(value) if isinstance(value, Object) else "name" if isinstance(value, Name) else type(value).__name__


def _split_unread(
    tensors: Mapping[str, PlacedTensor], unread: Mapping[str, Unread], paths: Mapping[str, KeyPath]
) -> tuple[dict[str, Unread], dict[str, Unread]]:
    """The tensors that cannot be read: those that stand alone, and those that stand beside others, which are a part of
    a model."""
    homes = {paths[name][:-1] for name in tensors}
    alone = {name: why for name, why in unread.items() if paths[name][:-1] not in homes}
    return alone, {name: why for name, why in unread.items() if name not in alone}


def _unread_notes(unread: Mapping[str, Unread], path: str) -> Iterable[Note]:
    """A note for each reason why tensors are not read."""
    for why in dict.fromkeys(unread.values()):
        names = tuple(name for name, other in unread.items() if other == why)
        yield Note("input-unread", f"{path}: not read: {few(names)}: {why.why}", why.remedy, names)


def _note_hidden(hidden: Mapping[KeyPath, str], path: str) -> Iterable[Note]:
    """A note on objects with tensors inside."""
    if hidden:
        found = [f"'{name_of(at)}' ({kind})" for at, kind in hidden.items()]
        message = f"{path}: the tensors inside of objects are not read: {few(found)}"
        yield Note("input-unread", message, _STATE_DICT, tuple(map(name_of, hidden)))


def _parts(paths: Mapping[str, KeyPath]) -> tuple[str, ...]:
    """The entries that may be the model, if one is called as trainers call a state dict; else all of it is read."""
    found = list(dict.fromkeys(at[0] for at in paths.values() if len(at) > 1))
    if _WRAPPER not in found:
        return ()
    return (_WRAPPER, *(str(key) for key in found if key in _MODELS))
