"""What the matches of a step say to each other: the order in which they go, and the tensors that all of them read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from brainsurgery_jax.lower.pairing import Sets
from brainsurgery_jax.protocol import Row
from brainsurgery_jax.select import natural_key

Writers = Mapping[str, Mapping[str, int]]
"""By alias: the names that a step writes, each with the number of the match that does."""


def find_writers(sets: Sets, rows: Sequence[Row], before: Collection[str]) -> Writers:
    """The names that a step writes: under keys that it does not read, or else the matches. `before`: keys whose tensors
    are read as they were before the step."""
    keys = sets.written or [key for key in sets.targets if key not in sets.read and key not in before]
    if not keys:
        return {sets.source.alias: {name: at for at, (name, _) in enumerate(rows)}}
    found: dict[str, dict[str, int]] = {}
    for key in keys:
        found.setdefault(sets.targets[key].alias, {}).update(
            (name, at) for at, name in enumerate(sets.names(rows, key))
        )
    return found


def find_shared(sets: Sets, rows: Sequence[Row], before: Collection[str], writers: Writers) -> dict[str, set[str]]:
    """By alias: the tensors that a match writes and others read, under a key that names one for all of them, or under
    one of `before`."""
    found: dict[str, set[str]] = {}
    for key in {*sets.read, *before}:
        alias = sets.targets[key].alias
        if alias in writers and (key in before or sets.templates[key].literal is not None):
            names = _written_by_others(sets.names(rows, key), writers[alias])
            found.setdefault(alias, set()).update(names)
    return found


def order_rows(sets: Sets, rows: Sequence[Row], before: Collection[str], writers: Writers) -> list[Row]:
    """The matches, in natural order if some read what others write."""
    keys = [k for k in sets.read if k not in before and sets.templates[k].literal is None]
    read = [(sets.targets[key].alias, sets.names(rows, key)) for key in keys]
    read.append((sets.source.alias, [name for name, _ in rows]))
    if any(_written_by_others(names, writers[alias]) for alias, names in read if alias in writers):
        return sorted(rows, key=lambda row: natural_key(row[0]))
    return list(rows)


def _written_by_others(names: Sequence[str], writers: Mapping[str, int]) -> set[str]:
    """Of the names that each match reads, in the order of matches: those that another match writes."""
    return {name for at, name in enumerate(names) if writers.get(name, at) != at}
