"""Documents and diagnostics as plain data, ready for `json.dumps`: what programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax.documents import (
    Branches,
    Datum,
    Document,
    Facts,
    Grid,
    Hanging,
    NameTree,
    Parts,
    Record,
    Table,
    Text,
    Value,
)  # fmt: skip
from brainsurgery_jax.errors import Diagnostic, StoreError

SCHEMA_VERSION = 1
"""Of all JSON that commands print. Grows when a key changes its meaning or goes; new keys leave it as it is."""


def as_json(**keys: object) -> str:
    """A JSON object with the version of the schema, indented; NaN and infinity as text."""
    return json.dumps(plain({"schema_version": SCHEMA_VERSION, **keys}), indent=2)


def as_json_line(**keys: object) -> str:
    """The same in one line."""
    return json.dumps(plain({"schema_version": SCHEMA_VERSION, **keys}))


def document_data(document: Document) -> dict[str, Any]:
    """A document as data; `kind` says which of its forms it has."""
    match document:
        case Text(text):
            return {"kind": "text", "text": text}
        case Table(title, rows):
            return {"kind": "table", "title": title, "rows": rows}
        case Facts(title, facts, summary):
            listed = [{"name": name, "value": value} for name, value in facts]
            return {"kind": "facts", "title": title, "facts": listed, "summary": summary}
        case NameTree(title, leaves):
            return {"kind": "tree", "title": title, "tensors": dict(leaves)}
        case Parts(parts):
            return {"kind": "parts", "parts": [document_data(part) for part in parts]}
        case Hanging(head, text):
            return {"kind": "text", "text": head + text}
        case Grid():
            return {"kind": "grid", "rows": grid_data(document)}
        case Branches():
            return {"kind": "branches", "rows": branches_data(document)}
        case Record():
            return {"kind": "record", "entries": record_data(document)}


def record_data(record: Record) -> dict[str, Datum]:
    """The entries of a record that have a key."""
    return {entry.key: entry.value for entry in record.entries if entry.key}


def grid_data(grid: Grid) -> list[dict[str, Value]]:
    """The rows of a grid, by the keys of its columns."""
    return [{c.key: cell for c, cell in zip(grid.columns, row, strict=True) if c.key} for row in grid.rows]


def branches_data(branches: Branches) -> dict[str, dict[str, Value]]:
    """The values of each name, by the keys of the columns; values that a row lacks are left out."""
    keys = [column.key for column in branches.columns]
    return {
        name: {key: cell for key, cell in zip(keys, row, strict=True) if key and cell is not None}
        for name, row in branches.rows.items()
    }


def diagnostic_data(found: Diagnostic) -> dict[str, object]:
    """A diagnostic as data; `place` is None where it has none."""
    place = found.span and {"file": found.span.file, "line": found.span.line, "column": found.span.col}
    told = {"code": found.code, "severity": found.severity, "message": found.message, "hint": found.hint}
    return {**told, "place": place}


def store_error_data(error: StoreError) -> dict[str, object]:
    """A file that could not be read or written, as the data of a diagnostic."""
    about = "" if error.tensor is None else f"tensor '{error.tensor}': "
    place = {"file": error.path, "line": 0, "column": 0}
    told = {"code": error.code or "io", "severity": "error", "message": about + error.problem, "hint": error.remedy}
    return {**told, "place": place}


def command_error_data(what: str, message: str, hint: str = "") -> dict[str, object]:
    """An error that is not about a plan or a file: `usage`, `interrupted`, `request`."""
    return {"code": what, "severity": "error", "message": message, "hint": hint, "place": None}


def plain(value: Datum | object) -> object:
    """Values as JSON has them: sequences are lists, records objects; complex numbers, NaN and infinity are text."""
    match value:
        case Record():
            return plain(record_data(value))
        case Branches():
            return plain(branches_data(value))
        case Grid():
            return plain(grid_data(value))
        case Diagnostic():
            return plain(diagnostic_data(value))
        case str() | bool() | int() | None:
            return value
        case float():
            return value if value - value == 0 else str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case Sequence():
            return [plain(item) for item in value]
        case _:
            return str(value)
