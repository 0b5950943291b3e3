"""The config that would say what the tensors say: the fewest keys to change that explain what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

from brainsurgery_jax.families.evidence import Seen, Sizes, keys_of, sizes_of
from brainsurgery_jax.families.model import Family
from brainsurgery_jax.layout.expressions import Expression

MOST_CHANGES = 3
"""How many dims are changed at once to explain what was found."""

MOST_HEADS = 1024
"""The largest number of heads that is tried."""


class Solved(NamedTuple):
    """A dim that the tensors say otherwise: its key, the values to set, and what shows it."""

    dim: str
    key: str
    patch: Mapping[str, int]
    seen: Seen


class Found(NamedTuple):
    """What was solved, what no value explains, and the config with all that was solved."""

    solved: tuple[Solved, ...]
    unexplained: tuple[Seen, ...]
    config: Mapping[str, Any]


def solve(family: Family, config: Mapping[str, Any], every: Sequence[Seen]) -> Found:
    """The changes to a config that explain what was seen of a family."""
    solved: list[Solved] = []
    unexplained: list[Seen] = []
    for wrong in _components([s for s in every if not sizes_of(family, config).agrees(s)]):
        changes = _explained(family, config, wrong, every)
        for change in changes:
            config = {**config, **change.patch}
        solved += changes
        unexplained += [s for s in wrong if not sizes_of(family, config).agrees(s)]
    return Found(tuple(solved), tuple(unexplained), config)


def _components(wrong: Sequence[Seen]) -> list[list[Seen]]:
    """What was found, grouped by the dims that it is about."""
    groups: list[list[Seen]] = []
    for each in wrong:
        joined = [g for g in groups if any(each.dims & other.dims for other in g)]
        groups = [g for g in groups if g not in joined] + [[*(s for g in joined for s in g), each]]
    return groups


def _explained(family: Family, config: Mapping[str, Any], wrong: Sequence[Seen], every: Sequence[Seen]) -> list[Solved]:
    """The smallest set of changes that explains the most, and contradicts nothing that agrees."""
    right = [s for s in every if s not in wrong and sizes_of(family, config).agrees(s)]
    best: list[Solved] = []
    most = 0
    for dims in _subsets(family, wrong):
        for changes in _assigned(family, config, dims, wrong):
            sizes = sizes_of(family, _with(config, changes))
            explained = sum(sizes.agrees(s) for s in wrong)
            if explained > most and all(map(sizes.agrees, right)):
                best, most = changes, explained
        if most == len(wrong):
            break
    return best


def _subsets(family: Family, wrong: Sequence[Seen]) -> list[tuple[str, ...]]:
    """The sets of dims to try: few before many, and those with rare dims last."""
    dims = [d for d in family.dims if any(d in s.dims for s in wrong)]
    sets = [c for size in range(1, MOST_CHANGES + 1) for c in combinations(dims, size)]
    return sorted(sets, key=lambda c: (any(d in family.rare for d in c), len(c)))


def _assigned(
    family: Family, config: Mapping[str, Any], dims: Sequence[str], wrong: Sequence[Seen]
) -> Iterator[list[Solved]]:
    """Every way to give dims values that formulas ask for, each dim in turn."""
    if not dims:
        yield []
        return
    for dim in dims:
        rest = [d for d in dims if d != dim]
        for change in _values(family, config, dim, wrong, rest):
            for more in _assigned(family, {**config, **change.patch}, rest, wrong):
                yield [change, *more]


def _values(
    family: Family, config: Mapping[str, Any], dim: str, wrong: Sequence[Seen], later: Sequence[str]
) -> Iterator[Solved]:
    """The values of a dim that a formula asks for, which does not ask for a dim that is `later` changed."""
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
    family: Family, config: Mapping[str, Any], sizes: Sizes, key: str, dim: str, f: Expression, found: int
) -> Iterator[dict[str, int]]:
    """Values for the key of a dim by which a formula may give what was found."""
    if (value := _solved(sizes, f, dim, found)) is not None:
        yield {key: value}
        yield {key: value} | _pinned(family, config, {key: value}, dim)
    # Where other dims follow from the key, such as the width of heads from their number, the formula is not linear.
    now = config.get(key)
    if isinstance(now, int) and _pinned(family, config, {key: now + 1}, dim):
        yield from ({key: n} for n in range(1, min(found, MOST_HEADS) + 1) if not found % n and n != now)


def _solved(sizes: Sizes, f: Expression, dim: str, found: int) -> int | None:
    """The value of a dim for which a formula, which is linear in it, gives what was found."""
    start, after = (sizes.assuming(dim, value).of(f) for value in (0, 1))
    if start is None or after is None or start == after:
        return None
    value, left = divmod(found - start, after - start)
    return value if not left and value > 0 and value != sizes.values[dim] else None


def _pinned(family: Family, config: Mapping[str, Any], patch: Mapping[str, int], dim: str) -> dict[str, int]:
    """Keys that keep the dims that follow from a changed key as they are."""
    before, after = sizes_of(family, config).values, sizes_of(family, {**config, **patch}).values
    pins: dict[str, int] = {}
    for other in family.dims:
        value = before[other]
        if other != dim and value is not None and value != after[other]:
            pins |= {key: value for key in keys_of(family, other, config)[-1:] if key not in patch}
    return pins


def _with(config: Mapping[str, Any], changes: Sequence[Solved]) -> dict[str, Any]:
    made = dict(config)
    for change in changes:
        made |= change.patch
    return made
