"""What the verbs return: the report of a run, and the explanation of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.lower import Program
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.rendering.notebook import HtmlTable, as_html, show_in_treescope
from brainsurgery_jax.wording import counted

if TYPE_CHECKING:
    from brainsurgery_jax.engine.plan.work import Machine, WorkItem
    from brainsurgery_jax.store.base import FileCounts


class Report(NamedTuple):
    """What a run did: the text of its reports, the checkpoints that it published, as (path, bytes, tensors), the steps
    that ran, as plain data, whether it ended as a dry run, notes on what may surprise, and the reports as data.
    `process`: of a run over several, the number of this one; the first has the reports, and publishes."""

    said: tuple[str, ...]
    published: tuple[tuple[str, int, int], ...]
    steps: tuple[Any, ...] = ()
    dry_run: bool = False
    notes: tuple[Diagnostic, ...] = ()
    documents: tuple[Document, ...] = ()
    process: int = 0

    def __repr__(self) -> str:
        wrote = f"{counted(len(self.published), 'checkpoint')} published" if self.published else "nothing published"
        counts = (len(self.steps), "step"), (len(self.said), "report"), (len(self.notes), "note")
        told = ", ".join(counted(number, what) for number, what in counts if number)
        return f"<Report: {wrote}{', ' + told if told else ''}{', dry run' if self.dry_run else ''}>"

    __treescope_repr__ = show_in_treescope

    def _repr_html_(self) -> str:
        """What a notebook shows: what was published."""
        rows = [(path, f"{tensors:,}", f"{nbytes:,}") for path, nbytes, tensors in self.published]
        return as_html(repr(self)[1:-1], [str(note.code) for note in self.notes[:5]],
                       HtmlTable(("checkpoint", "tensors", "bytes"), rows))  # fmt: skip


class Explanation(NamedTuple):
    """A lowered plan and its schedule, for printing. `peak` is the memory projected for the largest task, `peak_in_all`
    that for as many as run at a time, on `threads` threads. `cuts`: the files of each output, if its format tells.
    `items`: the work of a run on this machine. `refusal`: why such a run is refused for its memory, if it is."""

    program: Program
    bytes_copied: int
    bytes_computed: int
    tasks: int
    peak: int
    peak_in_all: int
    threads: int
    cuts: tuple[FileCounts | None, ...] = ()
    machine: Machine | None = None
    items: tuple[WorkItem, ...] = ()
    refusal: Diagnostic | None = None

    def __repr__(self) -> str:
        outputs, steps = len(self.program.publications), len(self.program.effects)
        told = f"{self.bytes_copied:,} bytes copied, {self.bytes_computed:,} computed, {self.peak_in_all:,} in memory"
        return f"<Explanation: {counted(steps, 'step')}, {counted(outputs, 'output')}, {told}>"

    __treescope_repr__ = show_in_treescope

    def _repr_html_(self) -> str:
        """What a notebook shows: what each step does to names."""
        rows = [(name_of(e.step), *(f"{len(names):,}" for names in (e.created, e.changed, e.deleted)))
                for e in self.program.effects]  # fmt: skip
        paths = [p.path for p in self.program.publications[:5]]
        return as_html(repr(self)[1:-1], paths, HtmlTable(("step", "created", "changed", "deleted"), rows))


def name_of(step: Step | None) -> str:
    """The name of a step's op, if it has one."""
    return "" if step is None or step.op is None else step.op.name
