"""Candidates for asserts: what holds of the right plan's outputs, said as asserts say it."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.api import lower_plan
from brainsurgery_jax.auditing.cases import ASSERT, CONFIG, Case, Data, config_of
from brainsurgery_jax.auditing.equations import equations
from brainsurgery_jax.auditing.golden import fingerprints, norms
from brainsurgery_jax.auditing.stand_ins import Shrunk
from brainsurgery_jax.auditing.world import StandInFiles
from brainsurgery_jax.auditing.written import MOST_PATTERNS, AliasOutput, groups_of, list_written, patterns_of
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Program
from brainsurgery_jax.lower.program import flatten

LAST = 20
"""The cost of a candidate that is taken only for what no other sees: it fits one checkpoint alone."""


class AssertCandidate(NamedTuple):
    """Steps that may be added to a plan, or an assert for its outputs. `cost`: how much they take to read and to run,
    compared with others. `told`: the same for the checkpoints themselves, if that is not the same."""

    key: str
    steps: tuple[Data, ...]
    cost: int
    of_output: bool = False
    told: tuple[Data, ...] = ()


def candidates_for(case: Case, shrunk: Shrunk) -> list[AssertCandidate]:
    """The candidates for a case, the cheapest first. What they say of shrunk stand-ins is told of the checkpoints."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        world = StandInFiles(case.stand_ins, Path(folder))
        program = lower_plan(case.plan(), world)
        outputs = list(list_written(case, program, world))
    found: list[AssertCandidate] = []
    for written in outputs:
        shapes = shrunk.shapes.get(written.path, {})
        found += [_candidate(lines, cost) for cost, lines in (*_cheap(case, written, program), *_copies(case, written))]
        found += [_candidate(*each) for each in _shapes(written, shapes)]
        found += [_candidate(lines, 3)._replace(key=f"output {lines}", of_output=True) for lines in _of_output(written)]
        found += [_candidate(lines, 3) for lines in _configs(case, written)] if shrunk.is_whole else []
    found += [_candidate(lines, 5 + len(lines)) for lines in equations(case)]
    for operator in fingerprints(case):
        of = operator["fingerprint"]["of"]
        told = () if shrunk.is_whole else _check(fingerprint={"of": of, "is": "blake2b:..."})
        found.append(_candidate(({ASSERT: operator},), LAST, told))
    found += [_candidate(({ASSERT: operator},), LAST + 1) for operator in norms(case, outputs) if shrunk.is_whole]
    return sorted({c.key: c for c in reversed(found)}.values(), key=lambda c: c.cost)


def _candidate(lines: tuple[Data, ...], cost: int, told: tuple[Data, ...] = ()) -> AssertCandidate:
    return AssertCandidate(str(lines), lines, cost, told=told)


def _shapes(
    written: AliasOutput, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[tuple[Data, ...], int, tuple[Data, ...]]]:
    """Of names that differ in numbers alone and have one shape: on the stand-ins, and of the checkpoints."""
    for pattern, names in groups_of(written.tensors).items():
        small = {written.tensors[name].aval.shape for name in names}
        large = {shapes[name] for name in names if name in shapes}
        if len(small) == len(large) == 1:
            of = f"{written.alias}::{pattern}"
            lines, told = (_check(shape={"of": of, "is": list(*found)}) for found in (small, large))
            yield lines, 4, told


def _check(**operator: object) -> tuple[Data, ...]:
    return ({ASSERT: operator},)


def _cheap(case: Case, written: AliasOutput, program: Program) -> Iterator[tuple[int, tuple[Data, ...]]]:
    """Of names, dtypes, shapes and finite values; headers decide most of them."""
    own = f"{written.alias}::"
    dtypes = {e.aval.dtype for e in written.tensors.values()}
    if any(dtype.is_float for dtype in dtypes):
        yield 1, _check(finite=f"{own}.+")
    if len(dtypes) == 1:
        yield 1, _check(dtype={"of": f"{own}.+", "is": str(*dtypes)})
    if any(CONFIG in stand_in.side for stand_in in case.stand_ins.values()):
        yield 1, _check(consistent=written.alias)
    yield 2, _check(count={"of": f"{own}.+", "is": len(written.tensors)})
    yield from ((2, lines) for lines in _unchanged(written))
    yield from ((3, lines) for lines in _writes(written, program))
    for pattern, names in groups_of(written.tensors).items():
        of = f"{own}{pattern}"
        kinds = {str(written.tensors[name].aval.dtype) for name in names}
        if pattern.count(r"\d+") == 1:
            yield 2, _check(contiguous=own + pattern.replace(r"\d+", r"(\d+)"))
        if len(names) > 1:
            yield 3, _check(count={"of": of, "is": len(names)})
        if len(dtypes) > 1 and len(kinds) == 1:
            yield 4, _check(dtype={"of": of, "is": next(iter(kinds))})


def _writes(written: AliasOutput, program: Program) -> Iterator[tuple[Data, ...]]:
    """How often tensors that steps wrote were written, loading counted."""
    own = f"{written.alias}::"
    effects = [e for e in flatten(program.effects) if not e.inner]
    counts = Counter(name for e in effects for name in (*e.created, *e.changed))
    by_count: dict[int, list[str]] = {}
    for name in written.tensors:
        if count := counts[own + name]:
            by_count.setdefault(count + (name in written.origin), []).append(name)
    for count, names in by_count.items():
        for pattern in patterns_of(names, list(written.tensors))[:MOST_PATTERNS]:
            yield _check(writes={"of": f"{own}{pattern}", "is": count})


def _of_output(written: AliasOutput) -> Iterator[tuple[Data, ...]]:
    """What tells the alias that is written from others: that it is no checkpoint as it was loaded."""
    yield ({"not": {"unchanged": {"of": ".+"}}},)
    yield ({"count": {"of": ".+", "is": len(written.tensors)}},)


def _configs(case: Case, written: AliasOutput) -> Iterator[tuple[Data, ...]]:
    """Keys of the config that the plan changes."""
    before = next((config_of(it.side) for it in case.stand_ins.values()), {})
    after = config_of(written.side)
    for key in [k for k, v in after.items() if before.get(k) != v and not isinstance(v, dict | list)][:MOST_PATTERNS]:
        yield _check(config={"of": f"{written.alias}::{key}", "is": after[key]})


def _unchanged(written: AliasOutput) -> Iterator[tuple[Data, ...]]:
    if not written.origin:
        return
    names = dict.fromkeys((*written.origin, *written.tensors))
    changed = [n for n in names if written.tensors.get(n) is None or not _is_copy(written.tensors[n], n, written)]
    patterns = patterns_of(changed, list(names))
    if 0 < len(patterns) <= MOST_PATTERNS and len(changed) < len(names):
        yield _check(unchanged={"except": [f"{written.alias}::{p}" for p in patterns]})
    elif not changed:
        yield _check(unchanged={"of": f"{written.alias}::.+"})


def _is_copy(expr: Expr, name: str, written: AliasOutput) -> bool:
    return name in written.origin and expr.is_leaf and expr.name == name


def _copies(case: Case, written: AliasOutput) -> Iterator[tuple[int, tuple[Data, ...]]]:
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
