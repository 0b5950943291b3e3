"""Tensors in pickles, read without torch and without running anything that a file says (see `pickle_machine.py`).

The names that torch gives to dtypes, storages and the functions that rebuild tensors have a meaning here. Any other
name stands for nothing: what a file would make of it is an inert `Object`. Format:
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import DTYPES, UINT8, Aval, DType
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import strides as row_by_row
from brainsurgery_jax.store.base import Unread
from brainsurgery_jax.store.io.strided import Laid
from brainsurgery_jax.store.torch.pickle_machine import (
    Buffer,
    Bytes,
    Call,
    Damaged,
    Excessive,
    Name,
    Object,
    PickleMachine,
)
from brainsurgery_jax.store.torch.pickle_opcodes import run

ORDERED_DICT = Name("collections", "OrderedDict")
_MOST_AXES = 64  # numpy's
_AS_PLAIN = "If it is needed, load it with torch, and save it as a plain tensor."
_TENSOR = 10  # what a tensor is charged beside what the file spells of it: its shape, strides, and how it lies


class Storage(NamedTuple):
    """A run of elements in a file, `numel` of them, found there by its key; the tensor begins `shift` elements in."""

    key: str
    dtype: DType
    numel: int
    shift: int = 0


class Tensor(NamedTuple):
    """A tensor as a pickle tells it: in which storage, from which element on, and how its elements lie there."""

    storage: Storage
    start: int
    aval: Aval
    laid: Laid


class Unpickler:
    """Reads the pickles in a file, one after the other. `storages` are those that they refer to."""

    def __init__(self, source: Bytes, path: str):
        self._path = path
        self._machine = PickleMachine(source, _VALUES, _CALLS, self._persistent)
        self.storages: list[Storage] = []

    @property
    def position(self) -> int:
        """Bytes that were read so far."""
        return self._machine.position

    def load(self) -> object:
        """The next object, its tensors as `Tensor`s. Raises StoreError."""
        try:
            return run(self._machine)
        except Excessive as bad:
            remedy = "Save the tensors alone: `torch.save(model.state_dict(), PATH)`."
            raise StoreError(self._path, f"its pickle is no pickle of tensors: {bad}", remedy=remedy) from bad
        except Damaged as bad:
            raise StoreError(self._path, f"its pickle is damaged: {bad}", remedy="Download or save it again.") from bad

    def _persistent(self, pid: object) -> object:
        storage = _storage(pid)
        if isinstance(storage, Storage):
            self.storages.append(storage)
        return storage


def unpickle(data: bytes, path: str) -> object:
    """The object that a pickle describes. Raises StoreError."""
    return Unpickler(Buffer(data), path).load()


def _storage(pid: object) -> object:
    """A storage, by what stands in place of its bytes: its type, key, device, size, and what it is a view of. Anything
    else that is referred to so is an object."""
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], DType):
        return Object(None, pid)
    _, kind, key, _, numel, *view = pid
    shift = view[0][1] if view and type(view[0]) is tuple and len(view[0]) > 1 else 0
    if type(key) not in (str, int) or not _are_counts(numel, shift):
        raise Damaged("a storage has no key or no size")
    return Storage(str(key)[:80], kind, numel, shift)


def _are_counts(*numbers: object) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def _tensor(m: PickleMachine, given: tuple[object, ...]) -> object:
    """A strided tensor on a storage of its dtype: storage, start, shape, strides, and then whether it needs gradients,
    which hooks it has, flags."""
    return _build_tensor(m, given, getattr(given[0], "dtype", None), 6)


def _tensor_of_dtype(m: PickleMachine, given: tuple[object, ...]) -> object:
    """A strided tensor on a storage of bytes; the dtype stands before the flags."""
    return _build_tensor(m, given, given[6], 7)


def _build_tensor(m: PickleMachine, given: tuple[Any, ...], dtype: Any, flags: int) -> Any:
    m.charge(_TENSOR)
    storage, start, shape, strides = given[:4]
    if not isinstance(storage, Storage) or not isinstance(dtype, DType):
        return Unread("its elements are of a type that is not known", _AS_PLAIN)
    if not all(type(sizes) in (tuple, list) and len(sizes) <= _MOST_AXES for sizes in (shape, strides)):
        raise Damaged("a tensor has no shape or no strides")
    shape, strides = tuple(shape), tuple(strides)
    if len(shape) != len(strides) or not _are_counts(start, *shape, *strides):
        raise Damaged("the shape, the strides or the place of a tensor are no counts")
    apart = strides if shape else row_by_row(shape)
    laid = _apply_flags(Laid(apart), given[flags] if len(given) > flags else None, dtype)
    return laid if isinstance(laid, Unread) else Tensor(storage, storage.shift + start, Aval(shape, dtype), laid)


def _apply_flags(laid: Laid, flags: object, dtype: DType) -> Laid | Unread:
    """How a tensor lies that torch has conjugated or negated by a flag alone."""
    known = {"conj": ("complex",), "neg": ("complex", "float")}
    if not flags:
        return laid
    if type(flags) is not dict or not all(dtype.kind in known.get(flag, ()) for flag in flags):
        return Unread("it has flags that are not known", _AS_PLAIN)
    return laid._replace(conjugated=bool(flags.get("conj")), negated=bool(flags.get("neg")))


def _unwrap(m: PickleMachine, given: tuple[object, ...]) -> object:
    """The tensor that a parameter is, or what else is wrapped."""
    return given[0] if isinstance(given[0], Tensor | Unread) else None


def _of_type(m: PickleMachine, given: tuple[object, ...]) -> object:
    """A tensor of a class of its own: the function that rebuilds it, the class, the arguments, a state."""
    rebuild, kind, inner = given[:3]
    call = _TENSORS.get(rebuild) if isinstance(rebuild, Name) else None
    if call is not None and type(inner) is tuple:
        return call(m, inner)
    why = f"it is of the class {kind}" if isinstance(kind, Name) else "it is of a class that is not known"
    return Unread(why, _AS_PLAIN)


def _on_device(m: PickleMachine, given: tuple[object, ...]) -> object:
    """The tensor that is brought to a device, of a dtype that stands behind it."""
    tensor, dtype = given[:2]
    plain = isinstance(tensor, Tensor) and tensor.aval.dtype == dtype
    return tensor if plain else Unread("it is cast when it is read", _AS_PLAIN)


def _mapping(kind: Name) -> Call:
    """A class of dicts, whose arguments are the entries that it begins with, or what makes its values."""

    def call(m: PickleMachine, given: tuple[Any, ...]) -> Any:
        made = Object(kind)
        made.entries = {}
        begun = given[-1] if given else ()
        pairs = begun.items() if type(begun) is dict else begun if type(begun) in (list, tuple) else ()
        for pair in pairs:
            if type(pair) not in (tuple, list) or len(pair) != 2:
                raise Damaged("an entry of a dict is no key with a value")
            key, value = pair
            m.charge()
            made.entries[key if type(begun) is dict else m.key(key)] = value
        return made

    return call


def _unread(why: str) -> Call:
    return lambda m, given: Unread(why, _AS_PLAIN)


def _size(m: PickleMachine, given: tuple[object, ...]) -> object:
    return given[0] if type(given[0]) is tuple else None


_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32",
}  # fmt: skip
_BY_NAME = {d.name: d for d in DTYPES}
_UTILS = "torch._utils"

_VALUES: Mapping[Name, object] = {
    **{Name(m, f"{s}Storage"): _BY_NAME[d] for s, d in _STORAGES.items() for m in ("torch", "torch.cuda")},
    **{Name("torch", d.name): d for d in DTYPES if d.numpy is not None},
    Name("torch.storage", "UntypedStorage"): UINT8,
    Name("torch.storage", "_UntypedStorage"): UINT8,
}
"""What names stand for that are no calls."""

_TENSORS: Mapping[Name, Call] = {
    Name(_UTILS, "_rebuild_tensor"): _tensor,
    Name(_UTILS, "_rebuild_tensor_v2"): _tensor,
    Name(_UTILS, "_rebuild_tensor_v3"): _tensor_of_dtype,
    Name(_UTILS, "_rebuild_parameter"): _unwrap,
    Name(_UTILS, "_rebuild_parameter_with_state"): _unwrap,
    Name(_UTILS, "_rebuild_device_tensor_from_cpu_tensor"): _on_device,
    Name(_UTILS, "_rebuild_device_tensor_from_numpy"): _unread("it is an array of numpy, brought to a device"),
    Name(_UTILS, "_rebuild_sparse_tensor"): _unread("it is sparse"),
    Name(_UTILS, "_rebuild_qtensor"): _unread("it is quantized"),
    Name(_UTILS, "_rebuild_nested_tensor"): _unread("it is nested"),
    Name(_UTILS, "_rebuild_meta_tensor_no_storage"): _unread("it has no elements (device meta)"),
    Name(_UTILS, "_rebuild_wrapper_subclass"): _unread("it is a wrapper of other tensors"),
}

_CALLS: Mapping[Name, Call] = {
    **_TENSORS,
    Name("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    Name("torch", "Size"): _size,
    **{name: _mapping(name) for name in (ORDERED_DICT, *(Name("collections", k) for k in ("Counter", "defaultdict")))},
}
