"""Gram matrices of bfloat16 matrices on the host, where the processor multiplies bfloat16 faster than float32 (AMX).

numpy has no such products; XLA has, for a first operand whose rows are what is summed over: others it widens first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from brainsurgery_jax._lazy import jax, np

FLAGS = frozenset({"amx_tile", "amx_bf16"})
"""What Linux calls the products in /proc/cpuinfo."""

LEAST = 1 << 34
"""Multiplications of a Gram matrix from which XLA computes it: 4096 x 2048 and more. It takes half of the time of
numpy, which computes one half of the matrix (0.15 s of 0.3 for 8192 x 2048), so that seven of them pay back the import
of JAX and the compiling (1 s). The choice follows from the shape alone: other tensors of a plan must not change bits.
"""

SLAB = 2048
"""Rows that are summed in one product."""

FEW = 8
"""Slabs that are added in float32; more are in float64."""

PARTS = 2
"""Parts of the columns. Of the products between two of them one is computed, the other is its mirror image. More parts
leave more out, but short products are slow."""

ALIGNED = 64
"""Columns of a part are a multiple of this, as kernels like them."""

_LINES = 16
"""Rows that are transposed at a time: three times as fast as all at once."""


def pays(x: np.ndarray) -> bool:
    """Whether `gram` computes the Gram matrix of a tall matrix [m, n] sooner than numpy."""
    m, n = x.shape
    return x.dtype.name == "bfloat16" and m * n**2 >= LEAST and is_fast()


@cache
def is_fast() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32, and JAX may use it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return lists_products(text) and _cpu() is not None


def lists_products(cpuinfo: str) -> bool:
    """Whether every processor in the text of /proc/cpuinfo has the products."""
    flags = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags")]
    return bool(flags) and all(FLAGS.issubset(each) for each in flags)


def gram(x: np.ndarray) -> np.ndarray:
    """`x^T x` [n, n] of a tall bfloat16 matrix [m, n], exactly symmetric, in float32, or float64 for many rows.

    Products of bfloat16 are exact in float32, so that only the sums are rounded, in the order of the kernel: what that
    makes of the result, `factor.limit_error` measures. Numbers below 2^-126 count as zero, which changes the norm by at
    most m * n * 2^-126 * (1 + max|x|): by 1e-14 of a trace above 1e-12, for any matrix that memory holds.
    """
    m, n = x.shape
    width = -(-n // (PARTS * ALIGNED)) * ALIGNED
    total = np.zeros((n, n), np.float32 if m <= FEW * SLAB else np.float64)
    for start in range(0, m, SLAB):
        columns = _transpose(x[start : start + SLAB])
        for lo in range(0, n, width):
            hi = min(lo + width, n)
            total[lo:hi, :hi] += multiply(columns[lo:hi], columns[:hi])
    for lo in range(0, n, width):
        at = slice(lo, min(lo + width, n))
        total[:lo, at] = total[at, :lo].T
        total[at, at] = np.tril(total[at, at]) + np.tril(total[at, at], -1).T
    return total


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b^T` of two bfloat16 matrices [m, k] and [n, k], with sums in float32."""
    return np.asarray(_compiled()(jax.device_put(a, _cpu()), jax.device_put(b, _cpu())))


@cache
def _compiled() -> Callable[[jax.Array, jax.Array], jax.Array]:
    along_rows = (((1,), (1,)), ((), ()))  # were `a` summed along its columns, XLA would widen both
    return jax.jit(lambda a, b: jax.lax.dot_general(a, b, along_rows, preferred_element_type=np.float32))


@cache
def _cpu() -> Any:
    """JAX's device for the CPU, or None if `JAX_PLATFORMS` leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _transpose(rows: np.ndarray) -> np.ndarray:
    """Rows [k, n] as columns [n, k], each of them contiguous."""
    if rows.strides[0] < rows.strides[1]:  # a wide matrix, seen from its other side
        return np.ascontiguousarray(rows.T)
    columns = np.empty(rows.shape[::-1], rows.dtype)
    for start in range(0, rows.shape[0], _LINES):
        columns[:, start : start + _LINES] = rows[start : start + _LINES].T
    return columns
