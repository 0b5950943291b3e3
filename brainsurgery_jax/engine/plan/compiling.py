"""Which calls that numpy could compute are compiled all the same, those on so many elements that it pays, and for which
lengths of their parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.graph.expr import Expr, cuts_of, walk
from brainsurgery_jax.index.parts import part_sizes
from brainsurgery_jax.op import Kernel, Static

Signature = tuple[Kernel, Static, tuple[DType, ...]]
"""What compiled code depends on besides shapes: the kernel, its parameters, and dtypes."""

Lengths = Mapping[Signature, Sequence[int]]
"""The lengths of parts for which calls are compiled, in ascending order."""

IN_ALL = 1 << 28
"""Elements that are computed in all: of as many, compiled code saves twice the time that it takes to import JAX."""

EACH = 1 << 26
"""The same of one signature, or of one length of it more: each takes a tenth of a second to compile."""

LEAST = 1 << 18
"""Elements of the shortest part that is compiled: numpy computes a shorter one as fast."""

LONGER = 2
"""A part is padded to at most so many times its length: that takes less time than numpy, and little memory."""


def signature_of(e: Expr) -> Signature:
    """The signature of a call."""
    assert e.kernel is not None
    return e.kernel, e.static, tuple(s.aval.dtype for s in e.srcs)


def lengths_to_compile(exprs: Iterable[Expr]) -> Lengths:
    """The calls that are worth it, among those of which compiled code has the same bits, each with the lengths of its
    parts that are: the longest, to which others are padded, and those of which there are many."""
    elements: dict[Signature, Counter[int]] = defaultdict(Counter)
    for e in walk(exprs):
        alike = None if e.kernel is None else e.kernel.alike
        if alike is not None and alike(tuple(s.aval for s in e.srcs), dict(e.static)):
            sizes = part_sizes(e.aval.shape, cuts_of(e) or ())
            elements[signature_of(e)] += Counter({n: n * count for n, count in sizes.items() if n >= LEAST})
    many = {signature: by_length for signature, by_length in elements.items() if by_length.total() >= EACH}
    if sum(by_length.total() for by_length in many.values()) < IN_ALL:
        return {}
    return {signature: _worth_it(by_length) for signature, by_length in many.items()}


def _worth_it(elements: Counter[int]) -> Sequence[int]:
    """The lengths to compile, in ascending order, by how many elements are in parts of each."""
    longest = max(elements)
    return sorted(length for length, count in elements.items() if count >= EACH or length == longest)


def length_for(e: Expr, size: int, lengths: Lengths) -> int | None:
    """The length for which a part of so many elements is compiled, its own or a longer one; None: numpy computes it."""
    if size < LEAST or not lengths:
        return None
    found = next((length for length in lengths.get(signature_of(e), ()) if length >= size), None)
    return None if found is None or found > LONGER * size else found
