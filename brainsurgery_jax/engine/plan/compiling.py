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
"""The same for the code of one signature and length, which takes a tenth of a second to compile."""

LEAST = 1 << 18
"""Elements of the shortest part for which anything is compiled: shorter ones take compiled code no less time."""

LONGER = 4
"""A part is computed by code for one so many times as long: that takes less time than numpy."""


def signature_of(e: Expr) -> Signature:
    """The signature of a call."""
    assert e.kernel is not None
    return e.kernel, e.static, tuple(s.aval.dtype for s in e.srcs)


def lengths_to_compile(exprs: Iterable[Expr]) -> Lengths:
    """The calls, among those of which compiled code has the same bits, that are worth it, and the lengths: the longest,
    for which shorter parts are padded, and others of which there are many."""
    elements: dict[Signature, Counter[int]] = defaultdict(Counter)
    for e in walk(exprs):
        alike = None if e.kernel is None else e.kernel.alike
        if alike is not None and alike(tuple(s.aval for s in e.srcs), dict(e.static)):
            for length, count in part_sizes(e.aval.shape, cuts_of(e) or ()).items():
                elements[signature_of(e)][length] += length * count
    found = {signature: of for signature, of in elements.items() if of.total() >= EACH and max(of) >= LEAST}
    if sum(of.total() for of in found.values()) < IN_ALL:
        return {}
    return {s: sorted(length for length in of if of[length] >= EACH or length == max(of)) for s, of in found.items()}


def length_for(e: Expr, size: int, lengths: Lengths) -> int | None:
    """The length for which a part of so many elements is compiled, its own or a longer one; None: numpy computes it."""
    if size < LEAST or not lengths:
        return None
    found = next((length for length in lengths.get(signature_of(e), ()) if length >= size), None)
    return found if found is not None and found <= LONGER * size else None
