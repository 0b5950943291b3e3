"""What the right plan writes: from which candidates for asserts are made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.auditing.cases import Case
from brainsurgery_jax.auditing.world import StandInFiles
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Program
from brainsurgery_jax.nametree import group_by_module, pattern_of

MOST_PATTERNS = 8
"""An assert with more patterns is read by nobody."""


class AliasOutput(NamedTuple):
    """What a plan writes of one alias: where to, its tensors by name, those that the alias was loaded with (none if it
    was not), and the side files of the output that it makes."""

    path: str
    alias: str
    tensors: Mapping[str, Expr]
    origin: Mapping[str, Expr]
    side: Mapping[str, bytes] = {}


def list_written(case: Case, program: Program, world: StandInFiles) -> Iterator[AliasOutput]:
    """What each output of a case holds; nothing of a dry run."""
    origins: dict[str, Mapping[str, Expr]] = {}
    for alias, path in case.inputs:
        source = world.open(path)
        origins[alias] = {n: world.graph.leaf(source, n, info.aval) for n, info in source.header.tensors.items()}
    saved = max(0, len(program.publications) - len(case.outputs))  # by steps, which come first
    for made in program.publications[saved:]:
        yield AliasOutput(made.path, made.alias, made.tensors, origins.get(made.alias, {}), made.side_files)


def groups_of(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by the patterns of those that differ in numbers alone."""
    return {pattern_of(module): members for module, members in group_by_module(names).items()}


def patterns_of(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """The fewest patterns of names, with numbers left open where that reaches no other name."""
    wanted = set(names)
    found: list[str] = []
    for pattern, members in groups_of(names).items():
        rule = re.compile(pattern)
        if all(name in wanted for name in among if rule.fullmatch(name)):
            found.append(pattern)
        else:
            found += [re.escape(name) for name in members]
    return found
