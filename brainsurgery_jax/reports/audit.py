"""What an audit found, for people and for programs."""

from __future__ import annotations

from brainsurgery_jax.auditing.audit import Audit, Planted, by_kind
from brainsurgery_jax.auditing.runner import Level
from brainsurgery_jax.auditing.suggest import Suggestion
from brainsurgery_jax.documents import Column, Document, Entry, Grid, Hanging, Parts, Record, Text, Value, show_only
from brainsurgery_jax.wording import counted

COLUMNS = (Level.CHECK, Level.ASSERT, Level.RUN, Level.WARNED, Level.MISSED, Level.EQUIVALENT)


def report_audit(found: Audit, *, verbose: bool = False) -> Record:
    """Planted errors by class and by what sees them, those that were missed, and asserts that would see them.

    `verbose`: text has every error.
    """
    listed = found.planted if verbose else found.missed
    errors = [_one(each, found, verbose) for each in listed]
    return Record((
        Entry("planted", [_data(each) for each in found.planted]),
        Entry("classes", {kind: {str(k): n for k, n in row.items()} for kind, row in by_kind(found.planted).items()}),
        Entry("suggestions", [_suggestion(each) for each in found.suggestions]),
        Entry("seen", len(found.seen)),
        Entry("missed", len(found.missed)),
        Entry("helped", len(found.helped)),
        Entry("factor", found.factor),
        *show_only(
            _grid(found),
            Parts((Text("all planted errors:" if verbose else "missed:"), *errors)) if errors else None,
            Parts(tuple(_lines(found))) if found.suggestions else None,
            Text(_summary(found)),
        ),
    ), space=1)  # fmt: skip


def _grid(found: Audit) -> Grid:
    columns = (Column("kind", "class"), *(Column(str(level), str(level), "count") for level in COLUMNS))
    rows = [(kind, *(row[level] for level in COLUMNS)) for kind, row in by_kind(found.planted).items()]
    return Grid(columns, tuple(rows))


def _one(each: Planted, found: Audit, verbose: bool) -> Document:
    said = f": {each.said}" if each.said and each.level is not Level.MISSED else ""
    helped = " (seen by an assert below)" if each.what in found.helped else ""
    level = "" if each.level is Level.MISSED and not verbose else f"{each.level}: "
    return Hanging("  ", f"{level}{each.mutator}: {each.what}{said}{helped}")


def _lines(found: Audit) -> list[Document]:
    steps = dict.fromkeys(line for each in found.suggestions if not each.of_output for line in each.lines)
    asserts = [line for each in found.suggestions if each.of_output for line in each.lines]
    aliases = sorted({each.alias for each in found.suggestions if each.alias})
    lines: list[Document] = [Text("add to `transforms`, to see more of them:")] if steps else []
    lines += [Hanging("  - ", line) for line in steps]
    lines += [Text("add to the output, to see more of them:")] if asserts or aliases else []
    lines += [Hanging("  ", f"alias: {alias}") for alias in aliases]
    lines += [Hanging("  ", f"asserts: [{', '.join(f'{{{line}}}' for line in asserts)}]")] if asserts else []
    return lines


def _data(each: Planted) -> dict[str, Value]:
    return {"mutator": each.mutator, "class": each.kind, "what": each.what, "level": str(each.level), "said": each.said}


def _suggestion(each: Suggestion) -> dict[str, Value]:
    return {
        "steps": list(each.lines), "sees": list(each.sees), "of_output": each.of_output, "alias": each.alias,
    }  # fmt: skip


def _summary(found: Audit) -> str:
    same = sum(1 for each in found.planted if each.level is Level.EQUIVALENT)
    total = len(found.seen) + len(found.missed)
    more = f", {len(found.helped)} more with the asserts above" if found.helped else ""
    sizes = "" if found.factor == 1 else f"; sizes were divided by {found.factor}"
    equal = f"; {counted(same, 'other')} changed nothing" if same else ""
    return f"{len(found.seen)} of {counted(total, 'planted error')} seen{more}{equal}{sizes}"
