"""Which calls that numpy could compute are compiled all the same: those on so many elements that it pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.op import Kernel, Static

Signature = tuple[Kernel, Static, tuple[DType, ...]]
"""What compiled code depends on besides shapes: the kernel, its parameters, and dtypes."""

IN_ALL = 1 << 28
"""Elements that are computed in all: of as many, compiled code saves twice the time that it takes to import JAX."""

EACH = 1 << 26
"""The same for the code of one signature, which takes a tenth of a second to compile for each length of a part."""


def signature_of(e: Expr) -> Signature:
    """The signature of a call."""
    assert e.kernel is not None
    return e.kernel, e.static, tuple(s.aval.dtype for s in e.srcs)


def calls_to_compile(exprs: Iterable[Expr]) -> frozenset[Signature]:
    """The signatures, among those of which compiled code has the same bits, that are worth it."""
    sizes: Counter[Signature] = Counter()
    for e in walk(exprs):
        alike = None if e.kernel is None else e.kernel.alike
        if alike is not None and alike(tuple(s.aval for s in e.srcs), dict(e.static)):
            sizes[signature_of(e)] += e.aval.size
    found = {signature: size for signature, size in sizes.items() if size >= EACH}
    return frozenset(found) if sum(found.values()) >= IN_ALL else frozenset()
