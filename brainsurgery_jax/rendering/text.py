"""Documents as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from brainsurgery_jax import nametree
from brainsurgery_jax.documents import (
    Branches,
    Column,
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
from brainsurgery_jax.store.sizes import show_size

Fold = Callable[[str, str], Sequence[str]]
"""The lines of a paragraph, of its head and its text."""


def on_one_line(head: str, text: str) -> list[str]:
    """A paragraph that is not folded."""
    return [f"{head}{text}".rstrip()]


def as_text(document: Document, fold: Fold = on_one_line) -> str:
    """The text of a document, without a line end. `fold`: how paragraphs that hang are folded."""
    return "\n".join(_lines(document, fold))


def _lines(document: Document, fold: Fold) -> Iterator[str]:
    match document:
        case Text(text):
            yield text
        case Table(title, rows):
            yield from _table(title, rows)
        case Facts(title, facts, summary):
            yield from [title] if title else []
            for name, value in facts:
                yield from _fact(name, value)
            yield from [summary] if summary else []
        case NameTree():
            yield from _tree(document)
        case Parts(parts, space):
            for at, part in enumerate(parts):
                yield from [""] * space if at else []
                yield from _lines(part, fold)
        case Hanging(head, text):
            yield from fold(head, text)
        case Grid():
            yield from _grid(document)
        case Branches():
            yield from _branches(document)
        case Record(entries, space):
            yield from _lines(Parts(tuple(e.shown for e in entries if e.shown is not None), space), fold)


def _grid(grid: Grid) -> Iterator[str]:
    rows = grid.rows[: grid.shown]
    cells = [[column.head, *(_cell(column, row[at]) for row in rows)] for at, column in enumerate(grid.columns)]
    shown = [(column, cell) for column, cell in zip(grid.columns, cells, strict=True) if column.head and any(cell[1:])]
    right = frozenset(at for at, (column, _) in enumerate(shown) if column.unit != "text")
    yield from align_columns(list(zip(*(cell for _, cell in shown), strict=True)), right)


def _branches(found: Branches) -> Iterator[str]:
    """The tree is drawn with tabs between cells, which are then aligned."""
    shown = [(at, column) for at, column in enumerate(found.columns) if column.head]
    unlike = {id(row): row for row in found.rows.values()}  # many tensors share a row
    texts = {at: "".join(f"\t{_cell(c, row[i])}" for i, c in shown) for at, row in unlike.items()}
    cells = {name: texts[id(row)] for name, row in found.rows.items()}
    cells |= {name: f"\t{word}" for name, word in found.others.items()}
    leaves = [(name.replace("\t", "\\t"), cells[name]) for name in sorted(cells)]
    rows = [line.split("\t") for line in nametree.draw(nametree.build(leaves), compact=found.compact)]
    most = max(map(len, rows), default=1)
    padded = [[row[0].rstrip(), *row[1:], *[""] * (most - len(row))] for row in rows]
    yield from align_columns(padded, frozenset(at for at, (_, c) in enumerate(shown, 1) if c.unit == "bytes"))


def _cell(column: Column, value: Value) -> str:
    match value:
        case None:
            return ""
        case int() if column.unit in ("bytes", "traffic"):
            return show_size(value) if value or column.unit == "bytes" else ""
        case list() | tuple():
            return str(list(value)) if column.unit == "shape" else ", ".join(map(str, value))
        case float() if column.unit == "figure":
            return f"{column.head} {value:.4g}"
        case int() if column.unit == "figure":  # a count: mostly 0, which is not worth a cell
            return f"{column.head} {value:,}" if value else ""
        case _:
            return str(value)


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    escaped = [tuple(cell.replace("\n", "\\n").replace("\t", "\\t") for cell in row) for row in rows]
    most = max(map(len, escaped))
    yield f"{title}:"
    yield from (f"  {line}" for line in align_columns([(*row, *[""] * (most - len(row))) for row in escaped]))


def _fact(name: str, value: Value) -> Iterator[str]:
    match value:
        case list() | tuple():
            yield f"{name}:"
            yield from (f"  - {item}" for item in value or ("none",))
        case bool():
            yield f"{name}: {'true' if value else 'false'}"
        case _:
            yield f"{name}: {value}"


def _tree(found: NameTree) -> Iterator[str]:
    tree = nametree.build(found.leaves)
    if found.style == "json":
        nested = nametree.plain(tree) if found.leaves else {}
        yield nametree.to_json({found.title: nested} if found.title else nested)
        return
    yield from [found.title] if found.title else []
    yield from nametree.draw(tree, compact=found.style == "compact")


def align_columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as lines, columns padded to their widest cell; `right`: the columns that are aligned to the right."""
    if not rows:
        return []
    columns = []
    for at, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if at in right else cell.ljust(width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
