"""Pickles of tensors read without torch, and without running anything that a file says.

A pickle names functions and classes, and an ordinary reader imports and calls them: that is how such a file takes over
a machine. Here a name stands for what `KNOWN` has for it, some inert function or type, and no other name is taken. So
the worst that a file can do is to be refused. Formats: https://docs.python.org/3/library/pickle.html and
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

from brainsurgery_jax.boxes import strides as row_by_row
from brainsurgery_jax.dtypes import DTYPES, UINT8, Aval, DType
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.strided import Laid

Names = Mapping[tuple[str, str], Any]
"""What names of a pickle stand for, by module and name."""

_NONE: Names = {}
_TRUSTED = (
    "If you trust the file, load it with torch and save its tensors alone: `torch.save(model.state_dict(), PATH)`."
)
_DAMAGE = (
    pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError, RecursionError,
    TypeError, ValueError,
)  # fmt: skip


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


class Refused(Exception):
    """A name that is not known, or something else that a file of tensors has no need of."""


def unpickled(file: BinaryIO, path: str, names: Names = _NONE, storages: list[Storage] | None = None) -> Any:
    """The next object in the file, tensors as `Tensor`s. `names` are known beside those of tensors; `storages` gets
    those that it refers to."""
    try:
        return _Unpickler(file, {**KNOWN, **names}, [] if storages is None else storages).load()
    except Refused as refused:
        raise StoreError(path, str(refused), remedy=_TRUSTED) from refused
    except _DAMAGE as error:
        raise StoreError(path, f"its pickle is damaged: {error}", remedy="Download or save it again.") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, names: Names, storages: list[Storage]):
        super().__init__(file)
        self._names, self._storages = names, storages

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is imported."""
        if (module, name) not in self._names:
            problem = f"names '{module}.{name}', and only tensors in plain containers are read. It was not run"
            raise Refused(problem)
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage, by what stands in place of its bytes: its type, key, device, size, and what it is a view of."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise Refused(f"refers to {str(pid)[:80]!r}, and only storages of tensors are read")
        _, kind, key, _, numel, *view = pid
        shift = view[0][1] if view and view[0] is not None else 0
        if not isinstance(kind, DType) or not isinstance(key, str | int) or not _are_counts(numel, shift):
            raise TypeError(f"a storage is {str(pid)[:80]!r}")
        self._storages.append(Storage(str(key), kind, numel, shift))
        return self._storages[-1]


def _are_counts(*numbers: Any) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """A strided tensor on a storage of its dtype; `more` says whether it needs gradients, which hooks it has ..."""
    return _typed(storage, start, shape, strides, storage.dtype, more[2] if len(more) > 2 else None)


def _tensor_of_dtype(storage: Any, start: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """A strided tensor on a storage of bytes."""
    return _typed(storage, start, shape, strides, more[2], more[3] if len(more) > 3 else None)


def _typed(storage: Any, start: Any, shape: Any, strides: Any, dtype: Any, flags: Any) -> Tensor:
    shape, strides = tuple(shape), tuple(strides)
    if not isinstance(storage, Storage) or not isinstance(dtype, DType) or len(shape) != len(strides):
        raise TypeError("a tensor has no storage, no dtype, or not as many strides as dimensions")
    if not _are_counts(start, *shape, *strides):
        raise ValueError(f"a tensor has the shape {shape}, strides {strides} and starts at {start}")
    if flags:
        raise Refused(f"holds a tensor with the flags {str(flags)[:80]}, which is not read")
    return Tensor(storage, storage.shift + start, Aval(shape, dtype), Laid(strides if shape else row_by_row(shape)))


def first(first: Any, *more: Any) -> Any:
    """What is wrapped: a parameter is a tensor."""
    return first


def _of_type(rebuild: Callable[..., Any], kind: Any, given: Any, state: Any) -> Any:
    """A tensor of a class of its own."""
    return rebuild(*given)


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Bytes as the oldest protocols write them."""
    return text.encode("latin1")


def _no_call(*given: Any) -> NoReturn:
    raise Refused("makes something that is no tensor")


_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
}  # fmt: skip
_BY_NAME = {d.name: d for d in DTYPES}

KNOWN: Names = {
    **{(m, f"{s}Storage"): _BY_NAME[d] for s, d in _STORAGES.items() for m in ("torch", "torch.cuda")},
    **{("torch", d.name): d for d in DTYPES if d.numpy is not None},
    ("torch.storage", "UntypedStorage"): UINT8,
    ("torch.storage", "_UntypedStorage"): UINT8,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): first,
    ("torch._utils", "_rebuild_parameter_with_state"): first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch.nn.parameter", "Parameter"): _no_call,
    ("torch.nn.parameter", "Buffer"): _no_call,
    ("torch", "Tensor"): _no_call,
    ("torch", "Size"): tuple,
    ("torch", "device"): first,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _bytes,
}
