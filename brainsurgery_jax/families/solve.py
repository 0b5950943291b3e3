"""Find the config that agrees with the tensors: the fewest changed keys that explain the observations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from brainsurgery_jax.families.evidence import Observation, Sizes, keys_of, sizes_of
from brainsurgery_jax.families.model import Family
from brainsurgery_jax.layout.expressions import Config, SizeExpression

MOST_CHANGES = 3
"""The largest number of dims that are changed at once."""

MOST_HEADS = 1024
"""The largest number of heads that is tried."""


class Solved(NamedTuple):
    """A dim that differs in the tensors: its key, the values to set, and the evidence."""

    dim: str
    key: str
    patch: Mapping[str, int]
    seen: Observation


class Solution(NamedTuple):
    """The solved dims, the observations that no value explains, and the config with all changes."""

    solved: tuple[Solved, ...]
    unexplained: tuple[Observation, ...]
    config: Config


def solve(family: Family, config: Config, every: Sequence[Observation]) -> Solution:
    """Find the changes to a config that explain the observations of a family."""
    solved: list[Solved] = []
    unexplained: list[Observation] = []
    for wrong in _components([s for s in every if not sizes_of(family, config).agrees(s)]):
        changes = _explain(family, config, wrong, every)
        for change in changes:
            config = {**config, **change.patch}
        solved += changes
        unexplained += [s for s in wrong if not sizes_of(family, config).agrees(s)]
    return Solution(tuple(solved), tuple(unexplained), config)


def _components(wrong: Sequence[Observation]) -> list[list[Observation]]:
    """Observations, grouped by the dims that they depend on."""
    groups: list[list[Observation]] = []
    for each in wrong:
        joined = [g for g in groups if any(each.dims & other.dims for other in g)]
        groups = [g for g in groups if g not in joined] + [[*(s for g in joined for s in g), each]]
    return groups


def _explain(
    family: Family, config: Config, wrong: Sequence[Observation], every: Sequence[Observation]
) -> list[Solved]:
    """The smallest set of changes that explains the most, and contradicts nothing that agrees."""
    right = [s for s in every if s not in wrong and sizes_of(family, config).agrees(s)]
    best: list[Solved] = []
    most = 0
    for dims in _subsets(family, wrong):
        for changes in _assign(family, config, dims, wrong):
            sizes = sizes_of(family, _with(config, changes))
            explained = sum(sizes.agrees(s) for s in wrong)
            if explained > most and all(map(sizes.agrees, right)):
                best, most = changes, explained
        if most == len(wrong):
            break
    return best


def _subsets(family: Family, wrong: Sequence[Observation]) -> list[tuple[str, ...]]:
    """The sets of dims to try: small ones first, those with rare dims last."""
    dims = [d for d in family.dims if any(d in s.dims for s in wrong)]
    sets = [c for size in range(1, MOST_CHANGES + 1) for c in combinations(dims, size)]
    return sorted(sets, key=lambda c: (any(d in family.rare for d in c), len(c)))


def _assign(
    family: Family, config: Config, dims: Sequence[str], wrong: Sequence[Observation]
) -> Iterator[list[Solved]]:
    """Every assignment of values that formulas require, to the dims in every order."""
    if not dims:
        yield []
        return
    for dim in dims:
        rest = [d for d in dims if d != dim]
        for change in _values(family, config, dim, wrong, rest):
            for more in _assign(family, {**config, **change.patch}, rest, wrong):
                yield [change, *more]


def _values(
    family: Family, config: Config, dim: str, wrong: Sequence[Observation], later: Sequence[str]
) -> Iterator[Solved]:
    """The values of a dim that formulas require, without formulas over a dim that changes `later`."""
    sizes = sizes_of(family, config)
    tried: list[Mapping[str, int]] = []
    for each, key in product(wrong, keys_of(family, dim, config)):
        for f in each.formulas:
            if dim in f.names and not f.names.intersection(later):
                for patch in _patches(family, config, sizes, key, dim, f, each.found):
                    if patch not in tried:
                        tried.append(patch)
                        yield Solved(dim, key, patch, each)


def _patches(
    family: Family, config: Config, sizes: Sizes, key: str, dim: str, f: SizeExpression, found: int
) -> Iterator[dict[str, int]]:
    """Values for the key of a dim for which a formula may equal the observed number."""
    if (value := _solve_for(sizes, f, dim, found)) is not None:
        yield {key: value}
        yield {key: value} | pin(family, config, {key: value}, dim)
    # Where other dims follow from the key, such as the width of heads from their number, the formula is not linear.
    now = config.get(key)
    if isinstance(now, int) and pin(family, config, {key: now + 1}, dim):
        yield from ({key: n} for n in range(1, min(found, MOST_HEADS) + 1) if not found % n and n != now)


def _solve_for(sizes: Sizes, f: SizeExpression, dim: str, found: int) -> int | None:
    """The value of a dim for which a formula, linear in it, equals the observed number."""
    start, after = (sizes.assuming(dim, value).of(f) for value in (0, 1))
    if start is None or after is None or start == after:
        return None
    value, left = divmod(found - start, after - start)
    return value if not left and value > 0 and value != sizes.values[dim] else None


def pin(
    family: Family, config: Config, patch: Mapping[str, int], dim: str, among: Collection[str] | None = None
) -> dict[str, int]:  # fmt: skip
    """Keys that keep the value of dims that depend on a changed key. `among`: the dims that there are, if not all."""
    before, after = sizes_of(family, config).values, sizes_of(family, {**config, **patch}).values
    pins: dict[str, int] = {}
    for other in family.dims:
        value = before[other]
        if other != dim and value is not None and value != after[other] and (among is None or other in among):
            pins |= {key: value for key in keys_of(family, other, config)[-1:] if key not in patch}
    return pins


def _with(config: Config, changes: Sequence[Solved]) -> dict[str, object]:
    changed = dict(config)
    for change in changes:
        changed |= change.patch
    return changed
