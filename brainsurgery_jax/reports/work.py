"""The work of a run, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from brainsurgery_jax.api import Explanation
from brainsurgery_jax.documents import Column, Entry, Grid, Record, Text, Value, show_only
from brainsurgery_jax.engine.plan.schedule import is_empty
from brainsurgery_jax.engine.plan.work import Copy, Site, Whole, WorkItem, parts_of, questions_of, tensors_of
from brainsurgery_jax.wording import counted, few

MOST = 20
"""Items that are shown unless all are asked for."""

_COLUMNS = (
    Column("", "item", "count"), Column("key", ""), Column("what", "what"), Column("where", "where"),
    Column("parts", ""), Column("tensors", ""), Column("questions", ""),
    Column("bytes_read", "reads", "traffic"), Column("bytes_written", "writes", "traffic"),
    Column("host_bytes", "host", "traffic"), Column("device_bytes", "device", "traffic"),
    Column("", "needs"), Column("needs", ""), Column("", "for"),
)  # fmt: skip


def report_work(found: Explanation, most: int | None) -> Record:
    """The machine and the items of a run, in the order in which they begin. Text has the first items and names, and all
    of them only if all names are shown (`most` is None)."""
    assert found.machine is not None
    numbers = {item.key: number for number, item in enumerate(found.items, 1)}
    paths, asking = [p.path for p in found.program.publications], asking_places(found)
    rows = tuple(_row(item, numbers, paths, asking, most) for item in found.items)
    grid = Grid(_COLUMNS, rows, None if most is None else MOST)
    left = 0 if most is None else max(len(rows) - MOST, 0)
    return Record((
        Entry("machine", asdict(found.machine)),
        *show_only(Text(f"\nwork: {counted(len(rows), 'item')}")),
        Entry("work", grid, grid if rows else None),
        *show_only(Text(f"and {counted(left, 'more item')}: --all shows them") if left else None),
    ))  # fmt: skip


def _row(
    item: WorkItem, numbers: Mapping[str, int], paths: Sequence[str], asking: Sequence[str], most: int | None
) -> tuple[Value, ...]:
    questions = [asking[number] for number in questions_of(item.work)]
    tensors = [{"output": paths[output], "name": name} for output, name in tensors_of(item.work)]
    parts = len(parts_of(item.work))
    ends = list(dict.fromkeys([*questions, *(name for _, name in tensors_of(item.work))]))
    blocks = f" ({counted(parts, 'block')})" if parts > 1 else ""
    return (
        numbers[item.key], item.key, what_of(item), [site.value for site in sites_of(item)],
        parts, tensors, questions, item.reads, item.writes, item.host_bytes, item.device_bytes,
        [numbers[key] for key in item.needs], list(item.needs), few(ends, most) + blocks,
    )  # fmt: skip


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
