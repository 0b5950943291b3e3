"""Small pieces of HTML for notebooks: what `_repr_html_` gives. Everything that is shown is escaped, and cut short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

MOST_ROWS = 20
MOST_CHARACTERS = 100
"""Of a cell: with MOST_ROWS, a table stays below 10 KB."""


class HtmlTable(NamedTuple):
    """A table of texts. `more`: rows that are not among them."""

    heads: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    more: int = 0


def as_html(title: str, facts: Sequence[str] = (), table: HtmlTable | None = None, picture: str = "") -> str:
    """A title, facts in one line, and a table of its first rows. `picture` is HTML already."""
    parts = [f"<b>{_text(title)}</b>"]
    if facts:
        parts.append(f"<div>{_text(', '.join(facts), 4 * MOST_CHARACTERS)}</div>")
    if table is not None and table.rows:
        parts.append(_table(table))
    return f"<div>{''.join(parts)}{picture}</div>"


def show_in_treescope(shown: object, path: str | None, subtree_renderer: Callable[..., object]) -> object:
    """The `__treescope_repr__` of a class: its `repr`, below which treescope puts what `_repr_html_` gives. Without it
    treescope would unfold all fields."""
    from treescope import rendering_parts  # which calls this, and is there

    return rendering_parts.build_one_line_tree_node(line=rendering_parts.text(repr(shown)), path=path)


def _table(table: HtmlTable) -> str:
    rows = table.rows[:MOST_ROWS]
    more = table.more + len(table.rows) - len(rows)
    head = "".join(f"<th>{_text(text)}</th>" for text in table.heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(text)}</td>' for text in row)}</tr>" for row in rows)
    tail = f"<div>and {more:,} more</div>" if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{tail}"


def _text(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text as HTML, control characters written out, and its end left out if it is long."""
    from html import escape  # a third of a megabyte, which only notebooks need

    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return escape(plain if len(plain) <= most else f"{plain[: most - 1]}…")


def draw_curve(values: Sequence[float], label: str) -> str:
    """A curve of shares between 0 and 1, as a small picture."""
    width, height = 220, 80
    step = max(1, len(values) // width)
    shown = list(values[::step])
    last = max(1, len(shown) - 1)
    points = " ".join(f"{at * width / last:.1f},{height * (1 - share):.1f}" for at, share in enumerate(shown))
    return (
        f'<svg width="{width + 4}" height="{height + 4}" viewBox="-2 -2 {width + 4} {height + 4}" role="img" '
        f'aria-label="{_text(label)}"><rect width="{width}" height="{height}" fill="none" stroke="#aaa"/>'
        f'<polyline points="{points}" fill="none" stroke="#3b6fb6" stroke-width="1.5"/></svg>'
    )
