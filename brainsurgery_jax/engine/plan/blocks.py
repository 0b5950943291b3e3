"""Where tensors are cut into blocks. The cuts depend on the size alone, so no budget or thread count changes a bit."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 1 << 20
"""Elements of a block: long enough to be fast, short enough for any budget."""

LEAST = 1 << 10
"""Elements to which shorter blocks are padded."""


def cuts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """`start:stop` cut at multiples of BLOCK."""
    while start < stop:
        end = min(stop, (start // BLOCK + 1) * BLOCK)
        yield start, end
        start = end


def pad_length(n: int) -> int:
    """The block length in which `n` elements are computed: a power of two, so that few lengths occur."""
    return max(LEAST, 1 << (n - 1).bit_length()) if n < BLOCK else BLOCK
