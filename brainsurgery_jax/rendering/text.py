"""Documents as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brainsurgery_jax import nametree
from brainsurgery_jax.documents import Document, Facts, NameTree, Parts, Table, Text, Value


def as_text(document: Document) -> str:
    """The text of a document, without a line end."""
    return "\n".join(_lines(document))


def _lines(document: Document) -> Iterator[str]:
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
                yield from _lines(part)


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
