"""Answers to questions as bytes, for the other processes of a run.

They are pickled, since a reduction may answer with any value of ours. Who unpickles them takes values only: the classes
of this package and of numpy that are listed or found by name here, and no function.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

_OF_OTHERS = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer"),
    ("collections", "Counter"), ("collections", "OrderedDict"), ("builtins", "complex"), ("builtins", "set"),
    ("builtins", "frozenset"), ("builtins", "range"), ("builtins", "slice"), ("builtins", "bytearray"),
    ("fractions", "Fraction"), ("types", "MappingProxyType"),
}  # fmt: skip


class _AnswerUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name) if _is_ours(module_name) else None
        if isinstance(found, type):
            return found
        if (module_name, global_name) in _OF_OTHERS or module_name == "ml_dtypes":
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no value of an answer")


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "brainsurgery_jax"


def pack(answers: Mapping[int, object]) -> bytes:
    """The answers to questions by number."""
    return pickle.dumps(dict(answers), protocol=5)


def unpack(data: bytes) -> dict[int, object]:
    """The answers that `pack` made. Raises UnpicklingError for anything but values."""
    return _AnswerUnpickler(io.BytesIO(data)).load()
