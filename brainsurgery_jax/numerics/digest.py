"""A fingerprint of tensors by content: BLAKE2b over every byte, in pieces that threads digest at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from brainsurgery_jax._lazy import np
from brainsurgery_jax.reduction import Reduction

ALGORITHM = "blake2b"
SIZE = 16
"""Bytes of a digest: 128 bits tell bit rot and other models apart."""
PIECE = 1 << 20
"""Elements of a piece. Another number gives other fingerprints."""


def _block(start: int, x: np.ndarray) -> bytes:
    assert start % PIECE == 0, "blocks begin at multiples of a piece, whatever the budget"
    data = np.ascontiguousarray(x).view(np.uint8)
    size = PIECE * x.itemsize
    return b"".join(blake2b(data[at : at + size].data, digest_size=SIZE).digest() for at in range(0, data.size, size))


CONTENT: Reduction[bytes, bytes] = Reduction(
    _block, lambda a, b: a + b, lambda found: blake2b(found, digest_size=SIZE).digest(), b"", placed=True, passing=0
)
"""The digest of the bytes of a tensor, little endian and in row-major order."""


def fingerprint(tensors: Iterable[tuple[str, str, bytes]]) -> str:
    """The fingerprint of tensors, each given by name, shape with dtype, and digest. Their order does not count."""
    total = blake2b(digest_size=SIZE)
    for name, aval, digest in sorted(tensors):
        total.update(f"{name}\0{aval}\0".encode(errors="surrogatepass") + digest + b"\n")
    return f"{ALGORITHM}:{total.hexdigest()}"
