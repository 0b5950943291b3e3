"""The work of a run, item by item, as a table for people and as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from brainsurgery_jax.api import Explanation
from brainsurgery_jax.engine.plan.schedule import is_empty
from brainsurgery_jax.engine.plan.work import Copy, Site, Whole, WorkItem, parts_of, questions_of, tensors_of
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, few

MOST = 20
"""Items that are shown unless all are asked for."""

_HEADS = ("item", "what", "where", "reads", "writes", "host", "device", "needs", "for")
_NUMBERS = ("item", "reads", "writes", "host", "device")


def work_as_text(found: Explanation, most: int | None) -> list[str]:
    """A row for each item in the order in which they begin, all of them only if all names are shown (`most` is None).
    Columns with nothing in them are left out."""
    items = found.items if most is None else found.items[:MOST]
    numbers = {item.key: str(number) for number, item in enumerate(found.items, 1)}
    asking = asking_places(found)
    rows = [_row(item, numbers, asking, most) for item in items]
    lines = ["", f"work: {counted(len(found.items), 'item')}", *(_align(rows) if rows else [])]
    if left := len(found.items) - len(items):
        lines.append(f"and {counted(left, 'more item')}: --all shows them")
    return lines


def _row(item: WorkItem, numbers: dict[str, str], asking: Sequence[str], most: int | None) -> tuple[str, ...]:
    sizes = [show_size(n) if n else "" for n in (item.reads, item.writes, item.host_bytes, item.device_bytes)]
    where = ", ".join(site.value for site in sites_of(item))
    needs = ", ".join(numbers[key] for key in item.needs)
    ends = [*(asking[number] for number in questions_of(item.work)), *(name for _, name in tensors_of(item.work))]
    parts = len(parts_of(item.work))
    blocks = f" ({counted(parts, 'block')})" if parts > 1 else ""
    return (numbers[item.key], what_of(item), where, *sizes, needs, few(list(dict.fromkeys(ends)), most) + blocks)


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    columns = [c for c in zip(_HEADS, *rows, strict=True) if any(c[1:])]
    widths = [max(map(len, column)) for column in columns]
    numeric = [column[0] in _NUMBERS for column in columns]
    for row in zip(*columns, strict=True):
        cells = zip(row, widths, numeric, strict=True)
        yield "  ".join(c.rjust(w) if number else c.ljust(w) for c, w, number in cells).rstrip()


def work_as_json(found: Explanation) -> dict[str, object]:
    """The same for scripts, with all items and names, and the machine that they were planned for."""
    assert found.machine is not None
    asking, paths = asking_places(found), [p.path for p in found.program.publications]
    items = [
        {
            "key": item.key,
            "what": what_of(item),
            "where": [site.value for site in sites_of(item)],
            "parts": len(parts_of(item.work)),
            "tensors": [{"output": paths[output], "name": name} for output, name in tensors_of(item.work)],
            "questions": [asking[number] for number in questions_of(item.work)],
            "bytes_read": item.reads,
            "bytes_written": item.writes,
            "host_bytes": item.host_bytes,
            "device_bytes": item.device_bytes,
            "needs": list(item.needs),
        }
        for item in found.items
    ]
    return {"machine": asdict(found.machine), "work": items}


def what_of(item: WorkItem) -> str:
    """The kind of an item in a word: copy, stream, boxes or whole."""
    return type(item.work).__name__.lower()


def sites_of(item: WorkItem) -> tuple[Site, ...]:
    """Where an item is computed; nowhere if it only moves bytes."""
    match item.work:
        case Whole():
            return item.work.sites
        case Copy():
            return ()
        case _:
            return (Site.HOST,)


def asking_places(found: Explanation) -> list[str]:
    """The step of each question with its place in the plan, by the number of the question."""
    steps = [c.step for c in found.program.checks for q in c.questions if not is_empty(q)]
    names = [(step.op.name if step.op else "step", step.span) for step in steps]
    return [f"{name} {span}" if span else name for name, span in names]
