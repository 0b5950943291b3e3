"""Where tensors are cut: a matter of their size alone, so that no budget, thread or neighbour ever changes a bit."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 1 << 20
"""Elements: the length in which tensors are computed, large enough for speed, small enough for any budget."""

PIECE = 1 << 18
"""Elements: of a block, what numpy computes on at a time."""

LEAST = 1 << 10
"""Elements: shorter blocks are padded to this."""


def cuts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """`start:stop` cut at multiples of BLOCK."""
    while start < stop:
        end = min(stop, (start // BLOCK + 1) * BLOCK)
        yield start, end
        start = end


def padded_length(n: int) -> int:
    """The block length in which `n` elements are computed: a power of two, so that few lengths occur."""
    return max(LEAST, 1 << (n - 1).bit_length()) if n < BLOCK else BLOCK
