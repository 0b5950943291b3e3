"""Which tensors of a checkpoint look broken, told from their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf, sqrt
from statistics import median

from brainsurgery_jax.nametree import module_of
from brainsurgery_jax.numerics.moments import TensorStats

EXPLODED = 100.0
"""So many times the typical magnitude of its module is too much for a tensor."""

FEWEST = 3
"""Tensors that a module needs for its typical magnitude to mean something."""


def find_problems(found: Mapping[str, TensorStats]) -> dict[str, str]:
    """What is wrong, by name, with tensors that hold NaN or infinity, are zero everywhere or constant, or whose root
    mean square is over 100 times the median over the tensors of their module: one name with other numbers in it."""
    typical = {module: median(sizes) for module, sizes in _magnitudes(found).items() if len(sizes) >= FEWEST}
    problems: dict[str, str] = {}
    for name, one in found.items():
        if told := "; ".join(_problems_of(one, typical.get(module_of(name), inf))):
            problems[name] = told
    return problems


def _magnitudes(found: Mapping[str, TensorStats]) -> dict[str, list[float]]:
    """The root mean squares of the finite tensors of each module."""
    groups: dict[str, list[float]] = {}
    for name, one in found.items():
        if not (one.nans or one.infs):
            groups.setdefault(module_of(name), []).append(_magnitude(one))
    return groups


def _magnitude(one: TensorStats) -> float:
    return one.norm / sqrt(one.size)


def _problems_of(one: TensorStats, typical: float) -> Iterator[str]:
    counts = [f"{number:,} {what}" for number, what in ((one.nans, "NaN"), (one.infs, "infinite")) if number]
    if counts:
        yield ", ".join(counts)
    elif one.zeros == one.size:
        yield "zero everywhere"
    elif one.min == one.max and one.size > 1:
        yield f"constant: {one.min:.6g}"
    if typical and not counts and _magnitude(one) > EXPLODED * typical:
        yield f"magnitude {_magnitude(one):.4g}, {_magnitude(one) / typical:,.0f} times the median of its module"
