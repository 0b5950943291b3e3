"""What the right plan writes: from which candidates for asserts are made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.auditing.cases import Case
from brainsurgery_jax.auditing.world import StandInFiles
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Program
from brainsurgery_jax.lower.program import flatten

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
    """What each output of a case holds, for those whose alias is known."""
    origins: dict[str, Mapping[str, Expr]] = {}
    for alias, path in case.inputs:
        source = world.open(path)
        origins[alias] = {n: world.graph.leaf(source, n, info.aval) for n, info in source.header.tensors.items()}
    changed = Counter(name.partition("::")[0] for e in flatten(program.effects) for name in (*e.created, *e.changed))
    saved = max(0, len(program.publications) - len(case.outputs))  # by steps, which come first
    for publication, output in zip(program.publications[saved:], case.outputs, strict=False):  # none in a dry run
        told = output.get("alias") if isinstance(output, Mapping) else None
        only = case.inputs[0][0] if len(case.inputs) == 1 else None
        alias = told or only or next((name for name, _ in changed.most_common(1)), None)
        if alias is not None:
            side = publication.side_files
            yield AliasOutput(publication.path, alias, publication.tensors, origins.get(alias, {}), side)


def pattern_of(name: str) -> str:
    """A pattern of a name, and of those that differ from it in numbers alone."""
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))


def groups_of(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by their patterns."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(pattern_of(name), []).append(name)
    return found


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
