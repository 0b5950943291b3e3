"""Candidates that say what a step computes, as an equation with the inputs as they were loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from brainsurgery_jax.auditing.cases import ASSERT, Case, Data
from brainsurgery_jax.auditing.places import Reference, references

_ORIGINAL = "original"


def equations(case: Case) -> Iterator[tuple[Data, ...]]:
    """The equations of all steps that have one, each with the steps that load the originals again."""
    for at, op, payload in case.edits():
        make = _MAKERS.get(op.removesuffix("_"))
        if make is not None:
            refs = {".".join(map(str, ref.path[1:])): ref for ref in references(case) if ref.step == at}
            yield from make(case, refs, payload)


def _load(case: Case, ref: Reference) -> tuple[Data, str] | None:
    """A step that loads what a reference's alias was loaded with, and its alias."""
    alias = ref.alias.removesuffix("::") or case.default_alias
    path = dict(case.inputs).get(alias)
    own = f"{_ORIGINAL}_{alias}"
    return None if path is None else ({"load": {"path": path, "alias": own}}, f"{own}::")


def _full(case: Case, ref: Reference) -> str:
    alias = ref.alias or (f"{case.default_alias}::" if case.default_alias else "")
    return f"{alias}{ref.pattern}{ref.slice}"


def _holds(names: Mapping[str, str], expr: str) -> Data:
    return {ASSERT: {"holds": {"from": dict(names), "expr": expr}}}


def _scale(case: Case, refs: Mapping[str, Reference], payload: Data) -> Iterator[tuple[Data, ...]]:
    target = refs.get("target")
    loaded = None if target is None else _load(case, target)
    if target is not None and loaded is not None:
        load, own = loaded
        names = {"new": _full(case, target), "old": f"{own}\\g<0>{target.slice}"}
        yield load, _holds(names, f"new == old * {payload.get('by', 1)}")


def _pair(sign: str) -> Callable[[Case, Mapping[str, Reference], Data], Iterator[tuple[Data, ...]]]:
    def make(case: Case, refs: Mapping[str, Reference], payload: Data) -> Iterator[tuple[Data, ...]]:
        source, target = refs.get("from"), refs.get("to")
        if source is None or target is None:
            return
        one, other = _load(case, source), _load(case, target)
        if one is not None and other is not None:
            names = {"delta": f"{one[1]}{source.pattern}{source.slice}", "new": _full(case, target),
                     "old": f"{other[1]}{target.pattern}{target.slice}"}  # fmt: skip
            yield one[0], other[0], _holds(names, f"new == old {sign} delta")

    return make


def _compute(case: Case, refs: Mapping[str, Reference], payload: Data) -> Iterator[tuple[Data, ...]]:
    sources = {key.removeprefix("from."): ref for key, ref in refs.items() if key.startswith("from.")}
    given: Any = payload.get("from")
    if not isinstance(given, Mapping) or set(sources) != set(given) or "let" in payload or "dtype" in payload:
        return
    loads: list[Data] = []
    names: dict[str, str] = {}
    for key, ref in sources.items():
        loaded = _load(case, ref)
        if loaded is None:
            return
        if loaded[0] not in loads:
            loads.append(loaded[0])
        names[key] = f"{loaded[1]}{ref.pattern}{ref.slice}"
    first = next(iter(sources.values()))
    target = refs.get("to")
    names["new"] = f"{first.alias}\\g<0>{first.slice}" if target is None else _full(case, target)
    yield *loads, _holds(names, f"new == {payload['expr']}")


def _fill(case: Case, refs: Mapping[str, Reference], payload: Data) -> Iterator[tuple[Data, ...]]:
    target = refs.get("target")
    if target is not None and payload.get("value") == 0:
        yield ({ASSERT: {"iszero": _full(case, target)}},)


_MAKERS: Mapping[str, Callable[[Case, Mapping[str, Reference], Data], Iterator[tuple[Data, ...]]]] = {
    "scale": _scale, "add": _pair("+"), "subtract": _pair("-"), "compute": _compute, "fill": _fill,
}  # fmt: skip
