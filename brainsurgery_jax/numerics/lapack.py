"""Decompositions of dense matrices by LAPACK, or by what the accelerator has in its place.

On the host, numpy's work in double precision whatever the dtype, in twice the time and memory, and always find all
eigenvectors; scipy's Python functions do better, and hold the interpreter's lock meanwhile. So real matrices go to the
LAPACK that scipy offers to compiled code, at the addresses that it publishes for that, as jaxlib does.
Reference: https://docs.scipy.org/doc/scipy/reference/linalg.cython_lapack.html and https://www.netlib.org/lapack/.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from threading import Lock
from typing import TYPE_CHECKING

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.numerics.math import on_host

_LETTERS = {"float32": "s", "float64": "d"}
_LOADING = Lock()

if TYPE_CHECKING:
    Argument = bytes | int | np.ndarray


def svd(x: Array) -> tuple[Array, Array, Array]:
    """The thin singular value decomposition: u [m, k], s [k] falling, v^H [k, n], k the shorter side."""
    if on_host(x) and x.dtype.name in _LETTERS:
        return _gesdd(x)
    return x.__array_namespace__().linalg.svd(x, full_matrices=False)


def singular_values(x: Array) -> Array:
    """The singular values, falling."""
    if on_host(x) and x.dtype.name in _LETTERS:
        return _gesdd_values(x)
    return x.__array_namespace__().linalg.svd(x, compute_uv=False)


def top_eigenvectors(x: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest eigenvalues, falling, and their eigenvectors [n, count], of a real symmetric matrix."""
    if on_host(x):
        return _syevr(x, count)
    values, vectors = x.__array_namespace__().linalg.eigh(x)
    return values[::-1][:count], vectors[:, ::-1][:, :count]


def is_positive_definite(x: np.ndarray) -> bool:
    """Whether a symmetric matrix on the host has a Cholesky factorization; it is overwritten."""
    n = x.shape[0]
    return _info(f"{_LETTERS[x.dtype.name]}potrf", (b"L", n, x, n)) == 0


def _gesdd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By divide and conquer. LAPACK counts along columns: what it takes for a matrix is the transpose of ours."""
    (m, n), k, dtype = x.shape, min(x.shape), x.dtype
    a, s, u, vh = np.array(x, order="C"), np.empty(k, dtype), np.empty((m, k), dtype), np.empty((k, n), dtype)
    integers = np.empty(8 * k, np.int32)
    _with_workspace(
        f"{_LETTERS[dtype.name]}gesdd", dtype,
        lambda work, size: (b"S", n, m, a, n, s, vh, n, u, k, work, size, integers),
    )  # fmt: skip
    return u, s, vh


def _gesdd_values(x: np.ndarray) -> np.ndarray:
    """By divide and conquer, without the vectors."""
    (m, n), k, dtype = x.shape, min(x.shape), x.dtype
    a, s, none, integers = np.array(x, order="C"), np.empty(k, dtype), np.empty(1, dtype), np.empty(8 * k, np.int32)
    _with_workspace(
        f"{_LETTERS[dtype.name]}gesdd", dtype,
        lambda work, size: (b"N", n, m, a, n, s, none, 1, none, 1, work, size, integers),
    )  # fmt: skip
    return s


def _syevr(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """By multiple relatively robust representations, which finds no more eigenvectors than are asked for. Among equal
    eigenvalues it may find fewer, and leave the rest of the memory as it was: then it is asked for all."""
    for most in (count, x.shape[0]):
        found, values, vectors = _last_eigenvectors(x, most)
        if found == most:
            return values[most - count : most][::-1], vectors[most - count :][::-1].T
    raise np.linalg.LinAlgError(f"LAPACK's syevr found {found} of {most} eigenvalues")


def _last_eigenvectors(x: np.ndarray, most: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many of the `most` largest eigenvalues were found; these, rising, and their eigenvectors as rows."""
    n, dtype = x.shape[0], x.dtype
    a, w, z = np.array(x, order="C"), np.empty(n, dtype), np.empty((most, n), dtype)
    found, support, integers = np.zeros(1, np.int32), np.empty(2 * n, np.int32), np.empty(10 * n, np.int32)
    none, which = np.zeros(1, dtype), b"A" if most == n else b"I"
    _with_workspace(
        f"{_LETTERS[dtype.name]}syevr", dtype,
        lambda work, size: (
            b"V", which, b"L", n, a, n, none, none, n - most + 1, n, none, found, w, z, n, support, work, size,
            integers, 10 * n,
        ),
    )  # fmt: skip
    return int(found[0]), w, z


def _with_workspace(name: str, dtype: np.dtype, arguments: Callable[[np.ndarray, int], tuple[Argument, ...]]) -> None:
    """Call a routine twice: it first tells how much workspace it wants."""
    wanted = np.empty(1, dtype)
    _call(name, arguments(wanted, -1))
    size = int(wanted[0]) + 1  # a large one may have been rounded down
    _call(name, arguments(np.empty(size, dtype), size))


def _call(name: str, arguments: tuple[Argument, ...]) -> None:
    """Call a routine of LAPACK that is to succeed."""
    if info := _info(name, arguments):
        why = "it did not converge" if info > 0 else "it cannot take the matrix"
        raise np.linalg.LinAlgError(f"LAPACK's {name} returned {info}: {why}")


def _info(name: str, arguments: tuple[Argument, ...]) -> int:
    """Call a routine of LAPACK, to which everything goes by address; other threads run on meanwhile. Its verdict."""
    info = ctypes.c_int(0)
    held = [ctypes.c_int(a) if isinstance(a, int) else a for a in arguments]
    places = [_address(a) for a in held]
    _routine(name, len(places))(*places, ctypes.addressof(info))
    return info.value


def _address(argument: bytes | ctypes.c_int | np.ndarray) -> bytes | int:
    if isinstance(argument, bytes):
        return argument
    return ctypes.addressof(argument) if isinstance(argument, ctypes.c_int) else argument.ctypes.data


@cache
def _routine(name: str, count: int) -> Callable[..., None]:
    """A routine as a function of addresses."""
    with _LOADING:
        capsule = _load_routines()[name]
    signature = ctypes.pythonapi.PyCapsule_GetName
    signature.restype, signature.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = pointer(capsule, signature(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (count + 1))(address)


@cache
def _load_routines() -> dict[str, object]:
    """The routines of `scipy.linalg.cython_lapack`, loaded without the rest of its package, which takes 0.2 s."""
    folder = os.path.join(import_module("scipy").__path__[0], "linalg")
    spec = PathFinder.find_spec("scipy.linalg.cython_lapack", [folder])
    assert spec is not None and spec.loader is not None, "scipy has no linalg.cython_lapack"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__pyx_capi__
