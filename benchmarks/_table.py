"""The records of rows as Markdown, and its place in the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
MOST_SHARES = 4
SHOWN_SHARE = 0.04
WORTH_TELLING_MB = 10


def page(text: str, rows: Mapping[str, Record]) -> str:
    """The page with what stands between the markers replaced by the tables. Raises ValueError if they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the lines {BEGIN} and {END}, in this order, where the table goes")
    return before + "\n".join((BEGIN, *_lines(rows), END)) + after


def _lines(rows: Mapping[str, Record]) -> Iterator[str]:
    yield from _grid(_HEAD, (cells for row in rows.values() if row["row"] != "sweep" for cells in _of(row)))
    if "sweep" in rows:
        yield from ("", *_sweep(rows["sweep"]))
    yield from ("", *_pictures(rows), *_measured(rows.values()))


_HEAD = ("job", "compared with", "ours", "CPU", "GB/s", "memory", "goal: measured", "time breakdown")


def _grid(head: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(cells)} |" for cells in lines)


def _of(row: Record) -> Iterator[tuple[str, ...]]:
    """Yield a line for each job of ours; the first line also lists the jobs it is compared with."""
    ours = [name for name, figures in row["jobs"].items() if figures["kind"] == "ours"]
    if "ours" in ours:
        ours = ["ours", *(name for name in ours if name != "ours")]
    for at, name in enumerate(ours):
        figures = row["jobs"][name]
        beside = "; ".join(_peer(n, f) for n, f in row["jobs"].items() if f["kind"] != "ours") if not at else ""
        yield (
            _label(row, name, first=not at), beside, _seconds(figures), f"{figures['cpu_s']:.2f} s",
            f"{figures['gb_per_s']:.2f}" if figures["moved_gb"] else "", _memory(figures), _goals(row, name),
            _shares(row["profiles"].get(name)),
        )  # fmt: skip


def _label(row: Record, name: str, *, first: bool) -> str:
    variant = "" if name == "ours" else name.removeprefix("ours, ")
    question = f"{row['question']} (`{row['row']}`)" if first else "the same" if name.startswith("ours") else ""
    return ": ".join(filter(None, (question, variant)))


def _peer(name: str, figures: Record) -> str:
    if figures["kind"] == "start":
        return f"start {_seconds(figures)}"
    heavy = figures["anonymous_mb"] >= WORTH_TELLING_MB
    return f"{name} {_seconds(figures)}" + f", {_memory(figures)}" * heavy


def _seconds(figures: Record) -> str:
    return f"{figures['wall_s']:.2f} s" + (f" ({figures['note']})" if "note" in figures else "")


def _memory(figures: Record) -> str:
    return f"{figures['anonymous_mb']:.0f} MB"


def _goals(row: Record, name: str) -> str:
    own = (goal for goal in row["goals"] if goal["job"] == name)
    return "<br>".join(f"{g['goal']}: {g['found']:g} {g['unit']} {'met' if g['met'] else '**missed**'}" for g in own)


def _shares(profile: Record | None) -> str:
    largest = list(profile["shares"].items())[:MOST_SHARES] if profile else []
    return ", ".join(f"{what} {share:.0%}" for what, share in largest if share >= SHOWN_SHARE)


def _sweep(row: Record) -> Iterator[str]:
    """Yield a line for each job, with a column for each size, the goals, and the time breakdown of the largest size."""
    families: dict[str, dict[str, Record]] = {}
    for name, figures in row["jobs"].items():
        job, _, size = name.rpartition(", ")
        families.setdefault(job, {})[size] = figures
    sizes = list(next(iter(families.values())))

    def cells(job: str, found: Mapping[str, Record]) -> Iterator[str]:
        yield job
        yield from (f"{_seconds(found[s])}, {_memory(found[s])}" if s in found else "" for s in sizes)
        yield _goals(row, job)
        yield _shares(row["profiles"].get(f"{job}, {list(found)[-1]}"))

    head = (f"{row['question']} (`sweep`)", *sizes, "goal: measured", "time breakdown, largest size")
    yield from _grid(head, (cells(job, found) for job, found in families.items()))


def _pictures(rows: Mapping[str, Record]) -> Iterator[str]:
    yield from ("![Seconds of every row, ours and its peers](performance-times.svg)", "")
    if "sweep" in rows:
        yield from ("![Time and memory by the size of the model](performance-sweep.svg)", "")


def _measured(rows: Iterable[Record]) -> Iterator[str]:
    """When, how often and on what; rows of one day and machine share a line."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        m = row["machine"]
        versions = ", ".join(f"{n} {m[n]}" for n in ("python", "jax", "numpy", "torch") if m[n])
        facts = f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; {versions}"
        small = "; tiny models, figures without meaning" if row["small"] else ""
        groups.setdefault(f"medians of {row['repetitions']}, {row['date']}, {facts}{small}", []).append(row["row"])
    for number, (facts, names) in enumerate(groups.items()):
        if number:
            yield ""
        yield f"{', '.join(names)}: {facts}."
