"""What a run would do, step by step, and what it writes and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from brainsurgery_jax.api import Explanation
from brainsurgery_jax.documents import Datum, Entry, Hanging, Parts, Record, Text, show_only
from brainsurgery_jax.op import SinkOp
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, few, show_side_files

_CHANGES = ("created", "changed", "deleted", "configured")


def report_explanation(found: Explanation, most: int | None, *, overwrite: bool = False) -> Record:
    """The steps with what each does to names, outputs, and what it all costs.

    `most`: names that text has of each kind, at most. `overwrite`: outputs may replace what is there, whatever the plan
    says.
    """
    program = found.program
    steps = tuple(_step(number, depth, e, found, most) for number, depth, e in number_steps(program.effects))
    cuts = zip(program.publications, found.cuts, strict=True)
    outputs = tuple(_output(p, cut, most, overwrite=overwrite or p.overwrite) for p, cut in cuts)
    noted = [d for d in program.diagnostics if d.severity == "note"]
    return Record((
        Entry("steps", steps, Parts((*steps, Text(""))) if steps else None),
        Entry("outputs", outputs, Parts(outputs or (Text("writes nothing"),))),
        *_costs(found),
        Entry("notes", list(map(str, noted))),
        Entry("diagnostics", noted),
    ))  # fmt: skip


def _costs(found: Explanation) -> tuple[Entry, ...]:
    copied, computed = show_size(found.bytes_copied), show_size(found.bytes_computed)
    threads = f"in all on {counted(found.threads, 'thread')}"
    peaks = f"{show_size(found.peak)} for the largest task, {show_size(found.peak_in_all)} {threads}"
    told = f"{copied} copied as bytes, {computed} computed in {counted(found.tasks, 'task')}"
    refusal = found.refusal
    why = None if refusal is None else Text(f"refused: {refusal.message}. {refusal.hint}")
    return (
        Entry("bytes_copied", found.bytes_copied, Text(told)),
        Entry("bytes_computed", found.bytes_computed),
        Entry("tasks", found.tasks),
        Entry("projected_peak_bytes", found.peak, Text(f"projected peak memory: {peaks}")),
        Entry("projected_peak_bytes_in_all", found.peak_in_all),
        Entry("threads", found.threads),
        Entry("refusal", None if refusal is None else refusal.message, why),
    )


def _output(p: Any, cut: Any, most: int | None, *, overwrite: bool) -> Record:
    """An output. `overwrite`: it may replace what is there."""
    dtypes = Counter(e.aval.dtype.name for e in p.written.values())
    kinds = ", ".join(f"{n:,} {d}" for d, n in dtypes.most_common())
    held = (*p.tree.empty, *p.tree.texts) if p.format.trees else ()
    needed = "" if overwrite else "; requires `overwrite: true` or --overwrite"
    counts = {} if cut is None else {"files": cut.files, "files_kept": cut.kept, "bytes_kept": cut.kept_bytes}
    tensors = {name: {"shape": list(e.aval.shape), "dtype": e.aval.dtype.name} for name, e in p.tensors.items()}
    leaves = {name: leaf.word for name, leaf in p.tree.others.items()} if p.format.trees else {}
    replaced = Text(f"    replaces {p.replaces}{needed}") if is_replacement(p) else None
    return Record((
        Entry("path", p.path, Text(f"writes {p.path}{'/' if p.directory and not p.path.endswith('/') else ''}")),
        Entry("directory", p.directory),
        Entry("bytes", p.nbytes, Text(f"    {counted(len(p.written), 'tensor')} ({kinds}), {show_size(p.nbytes)}")),
        *((Entry("kept", len(p.kept), Text(f"    {_kept(p.kept)}")),) if p.kept else ()),
        *show_only(
            Text(f"    beside tensors: {few(held, most)}") if held else None,
            Text(f"    {_files(cut)}") if cut is not None and (cut.files > 1 or cut.kept) else None,
        ),
        Entry("side_files", list(p.side_names), _side_files(p.side_names, most)),
        Entry("metadata_keys", list(p.metadata), _metadata(p.metadata, most)),
        Entry("leaves", leaves),
        Entry("replaces", replacement_of(p), replaced),
        *(Entry(key, count) for key, count in counts.items()),
        Entry("tensors", tensors),
    ))  # fmt: skip


def _kept(kept: Mapping[str, Any]) -> str:
    base = next(iter(kept.values())).source.header.path
    return f"a delta: {counted(len(kept), 'tensor')} stay in {base}"


def _side_files(names: Sequence[str], most: int | None) -> Text | None:
    return Text(f"    with {few(names, None) if most is None else show_side_files(names)}") if names else None


def _metadata(keys: Iterable[str], most: int | None) -> Text | None:
    carried = [key for key in keys if key != "format"]
    return Text(f"    header metadata: {few(carried, most)}") if carried else None


def is_replacement(p: Any) -> bool:
    """Whether an output replaces existing files."""
    return p.replaces is not None and bool(p.replaces.files)


def replaces(p: Any) -> str:
    """The files that an output replaces, in words."""
    where = f"{p.path.rstrip('/')}/: " if p.replaces.directory else ""
    return f"replaces {where}{p.replaces}"


def replacement_of(p: Any) -> Datum:
    """The same for programs, with all names; None where nothing is replaced."""
    return {"files": list(p.replaces.files), "bytes": p.replaces.nbytes} if is_replacement(p) else None


def _files(cut: Any) -> str:
    if not cut.kept:
        return counted(cut.files, "file")
    which = f"{cut.kept:,} of them" if cut.kept < cut.files else "each" if cut.files > 1 else "which is"
    return f"{counted(cut.files, 'file')}, {which} an unchanged file of an input: {show_size(cut.kept_bytes)}"


def number_steps(effects: Iterable[Any]) -> Iterator[tuple[str, int, Any]]:
    """The steps with their numbers and depths; steps within a step have no number, and stand further in."""
    for number, outer in enumerate(effects, 1):
        for depth, effect in outer.walk():
            yield " " * (3 + 4 * depth) if depth else f"{number:>3}", depth, effect


def _step(number: str, depth: int, effect: Any, found: Explanation, most: int | None) -> Record:
    step = effect.step
    waits = _waits(effect, found)
    margin = " " * (len(number) + 4)
    changes = {word: list(getattr(effect, word)) for word in _CHANGES}
    remarks = {
        f"skipped, a tensor is missing: {effect.skipped:,}": effect.skipped,
        "chooses its sizes from values, which a run computes first; upper bounds are shown": effect.staged,
        "depends on values: evaluated in the run": waits,
        "true, from headers alone": not waits and not any(changes.values()) and step.operator is not None,
    }
    return Record((
        *show_only(Text(f"{number}  {step.op.name}{f'  {step.span}' if step.span else ''}")),
        Entry("op", step.op.name if step.op else None),
        Entry("place", str(step.span) if step.span else None),
        *(Entry(word, names, _change(margin, word, names, most)) for word, names in changes.items()),
        *show_only(*(Text(f"{margin}{remark}") for remark, holds in remarks.items() if holds)),
        Entry("waits_for_values", waits),
        Entry("sizes_from_values", effect.staged),
        Entry("nested", depth > 0),
        Entry("depth", depth),
    ))  # fmt: skip


def _change(margin: str, word: str, names: list[str], most: int | None) -> Hanging | None:
    return Hanging(f"{margin}{word} {len(names):,}: ", few(names, most)) if names else None


def _waits(effect: Any, found: Explanation) -> bool:
    sink = isinstance(effect.step.op, SinkOp)
    return any(c.step is effect.step and (c.questions or (sink and not c.logged)) for c in found.program.checks)
