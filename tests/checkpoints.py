"""Tiny checkpoints for tests: written and read by a few lines of their own, so that no store is its own witness."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_TAG, DTYPES, DType
from brainsurgery_jax.engine.compute.devices import Devices
from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.errors import Diagnostic

Tensors = Mapping[str, np.ndarray]

COMPUTABLE: tuple[DType, ...] = tuple(d for d in DTYPES if d.numpy is not None)
OPAQUE: tuple[DType, ...] = tuple(d for d in DTYPES if d.numpy is None)
SAVABLE: tuple[DType, ...] = tuple(d for d in COMPUTABLE if d.tag)
FLOATS: tuple[DType, ...] = tuple(d for d in COMPUTABLE if d.kind == "float")
INTEGERS: tuple[DType, ...] = tuple(d for d in COMPUTABLE if d.kind in ("int", "uint"))


def np_dtype(dtype: DType) -> np.dtype:
    """The numpy (or ml_dtypes) dtype of one of ours."""
    assert dtype.numpy is not None
    return np.dtype(getattr(ml_dtypes, dtype.numpy, dtype.numpy))


_TAGS = {np_dtype(d): d.tag for d in SAVABLE}


def write(path: Path | str, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file with these tensors, in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": _TAGS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    return write_raw(path, header, b"".join(a.tobytes() for a in tensors.values()))


def write_raw(path: Path | str, header: Mapping[str, Any], data: bytes) -> Path:
    """A safetensors file with exactly this header and these bytes."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read(path: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; of opaque dtypes the bytes."""
    raw = Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        start, stop = (8 + size + o for o in entry["data_offsets"])
        dtype = BY_TAG[entry["dtype"]]
        flat = np.frombuffer(raw[start:stop], np.uint8 if dtype.numpy is None else np_dtype(dtype))
        out[name] = flat if dtype.numpy is None else flat.reshape(entry["shape"])
    return out


def bits(array: Any) -> bytes:
    """The bytes of an array in row-major order, for comparisons that tell NaNs and zeros apart."""
    return np.ascontiguousarray(np.asarray(array)).tobytes()


def same(left: Any, right: Any) -> bool:
    """Whether two arrays agree in shape, dtype and every bit, NaNs of any payload being one value."""
    a, b = np.asarray(left), np.asarray(right)
    return a.shape == b.shape and a.dtype == b.dtype and bits(_one_nan(a)) == bits(_one_nan(b))


def _one_nan(a: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "biu":
        return a
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.where(a != a, np.asarray(np.nan).astype(a.dtype), a)


def plan_of(folder: Path, tensors: Mapping[str, Any], transforms: Any, **keys: Any) -> dict[str, Any]:
    """A plan over freshly written inputs: `{name: array}` is one input, `{alias: {name: array}}` several.

    Everything lies in a new folder below `folder`; the output is its `out.safetensors`. Of several inputs the first is
    written.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    several = all(isinstance(t, Mapping) for t in tensors.values()) and bool(tensors)
    groups: Mapping[str, Tensors] = tensors if several else {"model": tensors}
    inputs = [f"{alias}::{write(place / f'{alias}.safetensors', group)}" for alias, group in groups.items()]
    output = {"path": str(place / "out.safetensors"), "alias": next(iter(groups))}
    steps = transforms if isinstance(transforms, list) else [transforms]
    return {"inputs": inputs, "transforms": steps, "output": output} | keys


def run_plan(
    folder: Path, tensors: Mapping[str, Any], transforms: Any, *, devices: Devices = "all", **keys: Any
) -> dict[str, np.ndarray]:
    """The tensors that a plan writes. Arguments as for `plan_of`; `devices`: accelerators to compute on."""
    plan = plan_of(folder, tensors, transforms, **keys)
    bs.load(plan).run(durable=False, devices=devices)
    return read(plan["output"]["path"])


def problems(folder: Path, tensors: Mapping[str, Any], transforms: Any, **keys: Any) -> tuple[Diagnostic, ...]:
    """What `check` says of a plan. Arguments as for `plan_of`."""
    return tuple(bs.check(bs.load(plan_of(folder, tensors, transforms, **keys))))


def counting(shape: Iterable[int], dtype: Any = np.float32) -> np.ndarray:
    """0, 1, 2, ... in the given shape."""
    shape = tuple(shape)
    return np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)


def normal(shape: Iterable[int], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Reproducible standard normal values."""
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(dtype)


def set_block(patch: pytest.MonkeyPatch, block: int, least: int = 1 << 10) -> None:
    """Make the engine compute in blocks of `block` elements, padded to no fewer than `least`."""
    patch.setattr(blocks, "BLOCK", block)
    patch.setattr(blocks, "LEAST", least)
