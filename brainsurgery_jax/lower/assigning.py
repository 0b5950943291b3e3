"""Steps that fill tensors which exist: what becomes of those that get no value, and of values without a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.lower import hints
from brainsurgery_jax.lower.pairing import UNMATCHED
from brainsurgery_jax.lower.view import StepView
from brainsurgery_jax.op import EXTRA, MISSING, Form
from brainsurgery_jax.protocol import Alone, Row
from brainsurgery_jax.select import Ref

PARTIAL = "assign-partial"
"""The code of notes on what such a step passed over."""


def choose_rows(view: StepView, form: Form, refs: Mapping[str, Ref], rows: list[Row]) -> list[Row]:
    """The matches that a step assigns. Raises Refusal for tensors that get no value (`missing: error`); a note lists
    these otherwise, and what was left out (`extra: ignore`), if the step has one of the keys."""
    source, key = refs[form.match_key], form.writes[0]
    if not (view.has_key(MISSING.key) or view.has_key(EXTRA.key)):
        return rows
    found = view.pair(source, {key: refs[key]})
    here = refs[key].alias
    kept = [other.name for other in found.others if not _is_random(view, other)]
    if kept and view.step.params.get(MISSING.param, MISSING.default) == "error":
        told = _count(kept, here, "gets no value", "get no value")
        raise Refusal(UNMATCHED, told, key=MISSING.key, hint="`missing: keep` leaves such tensors as they are.")
    ignored = [row[0] for row in found.alone] if view.step.params.get(EXTRA.param, EXTRA.default) == "ignore" else []
    if ignored and not found.rows and not view.step.lenient:
        message = f"no match of '{source}' has a tensor in '{here}' to fill, so there is nothing to do"
        raise Refusal(UNMATCHED, message, key=key, hint="Compare the names on both sides.")
    view.skipped += len(ignored)
    if kept or ignored:
        parts = [
            *([_count(ignored, source.alias, "is ignored", "are ignored")] if ignored else []),
            *([_count(kept, here, "is kept", "are kept")] if kept else []),
        ]
        view.note(PARTIAL, f"{len(found.rows):,} of {len(rows):,} matches are assigned; {'; '.join(parts)}")
    return [*found.rows] if ignored else rows


def _count(names: Sequence[str], alias: str, one: str, several: str) -> str:
    number = f"{len(names):,} tensors" if len(names) > 1 else "1 tensor"
    return f"{number} of '{alias}' {several if len(names) > 1 else one} ({hints.list_names(names)})"


def _is_random(view: StepView, other: Alone) -> bool:
    """Whether a tensor is the state of random numbers: a key, or the count beside one in a stream of Flax."""
    space = view.space(other.alias)
    names = [other.name]
    if (stem := other.name.removesuffix("count")) != other.name:
        names.append(f"{stem}key")
    types, tensors = space.leaves.types, space.names
    return any(
        (name in types and types[name].key) or (name in tensors and tensors[name].aval.dtype.name.startswith("key<"))
        for name in names
    )
