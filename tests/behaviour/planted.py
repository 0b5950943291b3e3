"""Weights that follow from their names, the same on every machine for ever, so that a digest of them can be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np


def planted(name: str, shape: Sequence[int]) -> np.ndarray:
    """A float32 tensor between -1 and 1, from a hash of its name."""
    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(2 * prod(shape)), "<u2")
    return (drawn.astype(np.float32) / np.float32(32768) - np.float32(1)).reshape(shape)


def digest(array: np.ndarray) -> str:
    """The beginning of a hash of an array's float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()[:16]


def digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """That of every array."""
    return {name: digest(array) for name, array in arrays.items()}
