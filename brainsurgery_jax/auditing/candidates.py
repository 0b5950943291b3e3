"""Candidates for asserts: what holds of the right plan's outputs, said as asserts say it."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.api import lower_plan
from brainsurgery_jax.auditing.cases import ASSERT, Case, Data
from brainsurgery_jax.auditing.equations import equations
from brainsurgery_jax.auditing.stand_ins import fingerprint_of
from brainsurgery_jax.auditing.world import StandInFiles
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Program
from brainsurgery_jax.lower.program import flatten

MOST_PATTERNS = 8
LAST = 20
"""The cost of a candidate that is taken only for what no other sees: it fits one checkpoint alone."""


class Candidate(NamedTuple):
    """Steps that may be added to a plan. `cost`: how much they take to read and to run, compared with others."""

    key: str
    steps: tuple[Data, ...]
    cost: int


class Written(NamedTuple):
    """What a plan writes of one alias: its tensors by name, and where each comes from: the alias's own tensors by name,
    if they are those of an input."""

    alias: str
    tensors: Mapping[str, Expr]
    origin: Mapping[str, Expr]


def candidates_for(case: Case) -> list[Candidate]:
    """The candidates for a case, the cheapest first."""
    folder = Path(tempfile.gettempdir())
    program = lower_plan(case.plan(), StandInFiles(case.stand_ins, folder))
    found: dict[str, Candidate] = {}
    for number, written in enumerate(_written(case, program)):
        steps: Iterable[tuple[int, tuple[Data, ...]]] = (
            *_cheap(case, written, program),
            *_copies(case, written),
        )
        for cost, lines in steps:
            found.setdefault(str(lines), Candidate(f"{number}:{lines}", lines, cost))
    for lines in equations(case):
        found.setdefault(str(lines), Candidate(str(lines), lines, 5 + len(lines)))
    for alias, digest in _fingerprints(case):
        lines = _check(fingerprint={"of": alias, "is": digest})
        found[str(lines)] = Candidate(str(lines), lines, LAST)
    return sorted(found.values(), key=lambda c: c.cost)


def _written(case: Case, program: Program) -> Iterator[Written]:
    origins = {}
    world = StandInFiles(case.stand_ins, Path(tempfile.gettempdir()))
    for alias, path in case.inputs:
        source = world.open(path)
        origins[alias] = {n: world.graph.leaf(source, n, info.aval) for n, info in source.header.tensors.items()}
    changed = Counter(name.partition("::")[0] for e in flatten(program.effects) for name in (*e.created, *e.changed))
    for publication, output in zip(program.publications, case.outputs, strict=False):
        told = output.get("alias") if isinstance(output, dict) else None
        only = case.inputs[0][0] if len(case.inputs) == 1 else None
        alias = told or only or next((name for name, _ in changed.most_common(1)), None)
        if alias is not None:
            yield Written(alias, publication.tensors, origins.get(alias, {}))


def _fingerprints(case: Case) -> Iterator[tuple[str, str]]:
    world = StandInFiles(case.stand_ins, Path(tempfile.gettempdir()))
    for alias, path in case.inputs:
        yield alias, fingerprint_of(case.stand_ins[world.key(path)])


def _check(**operator: object) -> tuple[Data, ...]:
    return ({ASSERT: operator},)


def _escape(name: str) -> str:
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))


def groups_of(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by their patterns."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_escape(name), []).append(name)
    return found


def _cheap(case: Case, written: Written, program: Program) -> Iterator[tuple[int, tuple[Data, ...]]]:
    """Of names, dtypes, shapes and finite values; headers decide most of them."""
    own = f"{written.alias}::"
    dtypes = {e.aval.dtype for e in written.tensors.values()}
    if any(dtype.is_float for dtype in dtypes):
        yield 1, _check(finite=f"{own}.+")
    if len(dtypes) == 1:
        yield 1, _check(dtype={"of": f"{own}.+", "is": str(*dtypes)})
    if any("config.json" in stand_in.side for stand_in in case.stand_ins.values()):
        yield 1, _check(consistent=written.alias)
    yield 2, _check(count={"of": f"{own}.+", "is": len(written.tensors)})
    yield from ((2, lines) for lines in _unchanged(written))
    writes = Counter(n for e in flatten(program.effects) for n in (*e.created, *e.changed) if not e.inner)
    for pattern, names in groups_of(written.tensors).items():
        of = f"{own}{pattern}"
        kinds = {(e.aval.shape, str(e.aval.dtype)) for e in map(written.tensors.__getitem__, names)}
        if r"\d+" in pattern and pattern.count(r"\d+") == 1:
            yield 2, _check(contiguous=f"{own}{pattern.replace(chr(92) + 'd+', '(' + chr(92) + 'd+)')}")
        if len(names) > 1:
            yield 3, _check(count={"of": of, "is": len(names)})
        if len({shape for shape, _ in kinds}) == 1:
            yield 4, _check(shape={"of": of, "is": list(next(iter(kinds))[0])})
        if len(dtypes) > 1 and len({dtype for _, dtype in kinds}) == 1:
            yield 4, _check(dtype={"of": of, "is": next(iter(kinds))[1]})
        times = {writes[own + name] for name in names}
        if len(times) == 1 and (count := times.pop()):
            loaded = 1 if all(name in written.origin for name in names) else 0
            yield 3, _check(writes={"of": of, "is": count + loaded})


def _unchanged(written: Written) -> Iterator[tuple[Data, ...]]:
    if not written.origin:
        return
    names = dict.fromkeys((*written.origin, *written.tensors))
    changed = [n for n in names if written.tensors.get(n) is None or not _is_copy(written.tensors[n], n, written)]
    patterns = patterns_of(changed, list(names))
    if 0 < len(patterns) <= MOST_PATTERNS and len(changed) < len(names):
        yield _check(unchanged={"except": [f"{written.alias}::{p}" for p in patterns]})
    elif not changed:
        yield _check(unchanged={"of": f"{written.alias}::.+"})


def _is_copy(expr: Expr, name: str, written: Written) -> bool:
    return name in written.origin and expr.is_leaf and expr.name == name


def patterns_of(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """The fewest patterns of names with numbers left open where that reaches no other name."""
    wanted = set(names)
    found: list[str] = []
    for pattern, members in groups_of(names).items():
        rule = re.compile(pattern)
        if all(name in wanted for name in among if rule.fullmatch(name)):
            found.append(pattern)
        else:
            found += [re.escape(name) for name in members]
    return found


def _copies(case: Case, written: Written) -> Iterator[tuple[int, tuple[Data, ...]]]:
    """Of tensors that are those of an input under another name: which ones."""
    paths = {path: alias for alias, path in reversed(case.inputs)}
    rules: dict[tuple[str, str, str], int] = {}
    for name, expr in written.tensors.items():
        path = expr.source.header.path if expr.is_leaf else None
        if path in paths and (expr.name != name or paths[path] != written.alias):
            rules.setdefault((path, *_rule(expr.name, name)), 0)
    original = fresh_alias(case)
    for path, old, new in list(rules)[:MOST_PATTERNS]:
        load = {"load": {"path": path, "alias": f"{original}_{paths[path]}"}}
        sides = {"left": f"{original}_{paths[path]}::{old}", "right": f"{written.alias}::{new}"}
        yield 4, (load, {ASSERT: {"identical": sides}})


def _rule(old: str, new: str) -> tuple[str, str]:
    """A pattern and a template that lead from one name to another: the longest end that they share is captured."""
    a, b = old.split("."), new.split(".")
    shared = 0
    while shared < min(len(a), len(b)) - 1 and a[-1 - shared] == b[-1 - shared] and not a[-1 - shared].isdecimal():
        shared += 1
    head, tail = a[: len(a) - shared], b[: len(b) - shared]
    if shared == 0:
        return re.escape(old), new
    return r"\.".join((*map(re.escape, head), "(.+)")), ".".join((*tail, r"\1"))


def fresh_alias(case: Case) -> str:
    """A name for the originals that no alias of the case begins with."""
    taken = [alias for alias, _ in case.inputs]
    return next(n for n in ("original", "as_loaded", "untouched") if not any(a.startswith(n) for a in taken))
