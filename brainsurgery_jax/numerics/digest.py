"""Digests of tensors by content: of every byte, in pieces that threads digest at the same time.

Two functions, each for its purpose. A fingerprint in a plan is BLAKE2b: whoever may change the file cannot make another
one with it. A lock takes XXH3 with 128 bits, which tells damage and other values apart at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

from brainsurgery_jax._lazy import np
from brainsurgery_jax.reduction import Reduction

ALGORITHM = "blake2b"
SIZE = 16
"""Bytes of a digest: 128 bits tell bit rot and other models apart."""
PIECE = 1 << 20
"""Elements of a piece. Another number gives other digests."""

DigestFunction = Callable[[Any], bytes]
"""The digest of a buffer."""


def digest_blake2b(data: Any) -> bytes:
    """The BLAKE2b digest of a buffer."""
    return blake2b(data, digest_size=SIZE).digest()


def digest_xxh3(data: Any) -> bytes:
    """The XXH3 digest of a buffer, 128 bits."""
    from xxhash import xxh3_128_digest  # only who writes or checks a lock needs it

    return xxh3_128_digest(data)


def begin_xxh3() -> Any:
    """An XXH3 digest in the making, as those of `hashlib`."""
    from xxhash import xxh3_128

    return xxh3_128()


def content(function: DigestFunction) -> Reduction[bytes, bytes]:
    """The digest of the bytes of a tensor, little endian and in row-major order: the digest of those of its pieces."""

    def block(start: int, x: np.ndarray) -> bytes:
        assert start % PIECE == 0, "blocks begin at multiples of a piece, whatever the budget"
        data = np.ascontiguousarray(x).view(np.uint8)
        size = PIECE * x.itemsize
        return b"".join(function(data[at : at + size].data) for at in range(0, data.size, size))

    return Reduction(block, lambda a, b: a + b, function, b"", placed=True, passing=0)


CONTENT = content(digest_blake2b)
"""What a fingerprint is made of."""
LOCKED = content(digest_xxh3)
"""What a lock holds."""


def fingerprint(tensors: Iterable[tuple[str, str, bytes]]) -> str:
    """The fingerprint of tensors, each given by name, shape with dtype, and digest. Their order does not count."""
    total = blake2b(digest_size=SIZE)
    for name, aval, digest in sorted(tensors):
        total.update(f"{name}\0{aval}\0".encode(errors="surrogatepass") + digest + b"\n")
    return f"{ALGORITHM}:{total.hexdigest()}"
