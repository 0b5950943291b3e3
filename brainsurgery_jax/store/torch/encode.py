"""Writing with torch: `.pt` files from memory maps. The extra `[torch]`; nothing else in the package imports it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import StoreError, cause_of
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.nesting import Device, build

if TYPE_CHECKING:
    import numpy as np

_INSTALL = "Install it: `pip install 'brainsurgery-jax[torch]'`; or write another format."
_CARRIERS = {1: "uint8", 2: "uint16"}
"""What numpy calls the bytes of a type of ml_dtypes, on its way to torch."""


def encode_torch(file: IO[bytes], arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes a dict of tensors, which `torch.load(path, weights_only=True)` gives back. With the
    option `bare` the one tensor itself."""
    import torch

    made: Any = contents(arrays, options)
    if options.options.get("bare"):
        (made,) = made.values()

    try:
        torch.save(made, file)  # given a path, torch would write its name into the file
    except RuntimeError as error:  # that the archive has no end; why it has none is what counts
        raise cause_of(error) from error


def contents(arrays: Mapping[str, np.ndarray], options: WriteOptions) -> Any:
    """The tensors by name; or in the containers of their input, with values beside them, if that is wanted."""
    made = tensors(arrays)
    if options.nest is None:
        return made
    values = {path: _of_torch(value) for path, value in options.nest.values.items()}
    return build(options.nest._replace(values=values), made)


def _of_torch(value: object) -> object:
    """A plain value with torch's own dtypes and devices in it."""
    import torch

    match value:
        case DType():
            return getattr(torch, value.name)
        case Device():
            return torch.device(str(value))
        case dict():
            return type(value)({key: _of_torch(item) for key, item in value.items()})
        case list() | tuple():
            return type(value)(_of_torch(item) for item in value)
    return value


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, object]:
    """The arrays as tensors on the same memory."""
    with warnings.catch_warnings():
        # It cannot be written to, and nobody does.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return {name: _tensor(array) for name, array in arrays.items()}


def _tensor(array: np.ndarray) -> object:
    import torch

    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    carried = torch.from_numpy(array.view(_CARRIERS[array.dtype.itemsize]))
    return carried.view(getattr(torch, array.dtype.name))


def check_torch(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError if torch is missing, for the first tensor that it has no dtype for, and for several tensors
    where there is room for one."""
    if options.options.get("bare") and len(avals) != 1:
        raise StoreError(path, f"cannot hold {len(avals)} tensors without a dict", remedy="Drop the option `bare`.")
    if find_spec("torch") is None:
        raise StoreError(path, "needs torch, which is not installed", remedy=_INSTALL)
    for name, aval in avals.items():
        if aval.dtype.numpy is None:
            remedy = "Write safetensors, which carries the packed bytes."
            raise StoreError(path, f"torch has no dtype {aval.dtype}", tensor=name, remedy=remedy)
