"""What a run would do, step by step, as lines for people and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from brainsurgery_jax.api import Explanation
from brainsurgery_jax.cli.show import hanging
from brainsurgery_jax.op import SinkOp
from brainsurgery_jax.rendering.data import diagnostic_data
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, few, show_side_files

_CHANGES = ("created", "changed", "deleted", "configured")


def as_text(found: Explanation, most: int | None, *, overwrite: bool = False) -> list[str]:
    """The steps with what each does to names (at most so many of them), outputs, and what it all costs. `overwrite`:
    outputs may replace what is there, whatever the plan says."""
    program = found.program
    lines: list[str] = []
    for number, effect in _number_steps(program.effects):
        lines += _step(number, effect, found, most)
    lines += [""] if lines else []
    for p, cut in zip(program.publications, found.cuts, strict=True):
        dtypes = Counter(e.aval.dtype.name for e in p.tensors.values())
        kinds = ", ".join(f"{n:,} {d}" for d, n in dtypes.most_common())
        lines.append(f"writes {p.path}{'/' if p.directory and not p.path.endswith('/') else ''}")
        lines.append(f"    {counted(len(p.tensors), 'tensor')} ({kinds}), {show_size(p.nbytes)}")
        if held := (*p.tree.empty, *p.tree.texts) if p.format.trees else ():
            lines.append(f"    beside tensors: {few(held, most)}")
        if cut is not None and (cut.files > 1 or cut.kept):
            lines.append(f"    {_files(cut)}")
        if p.side_names:
            named = few(p.side_names, None) if most is None else show_side_files(p.side_names)
            lines.append(f"    with {named}")
        if carried := [key for key in p.metadata if key != "format"]:
            lines.append(f"    header metadata: {few(carried, most)}")
        if is_replacement(p):
            needed = "" if overwrite or p.overwrite else "; requires `overwrite: true` or --overwrite"
            lines.append(f"    replaces {p.replaces}{needed}")
    if not program.publications:
        lines.append("writes nothing")
    copied, computed = show_size(found.bytes_copied), show_size(found.bytes_computed)
    lines.append(f"{copied} copied as bytes, {computed} computed in {counted(found.tasks, 'task')}")
    threads = f"in all on {counted(found.threads, 'thread')}"
    peaks = f"{show_size(found.peak)} for the largest task, {show_size(found.peak_in_all)} {threads}"
    lines.append(f"projected peak memory: {peaks}")
    return lines


def is_replacement(p: Any) -> bool:
    """Whether an output replaces existing files."""
    return p.replaces is not None and bool(p.replaces.files)


def replaces(p: Any) -> str:
    """The files that an output replaces, in words."""
    where = f"{p.path.rstrip('/')}/: " if p.replaces.directory else ""
    return f"replaces {where}{p.replaces}"


def replacement_as_json(p: Any) -> dict[str, Any] | None:
    """The same for scripts, with all names."""
    return {"files": list(p.replaces.files), "bytes": p.replaces.nbytes} if is_replacement(p) else None


def _files(cut: Any) -> str:
    if not cut.kept:
        return counted(cut.files, "file")
    which = f"{cut.kept:,} of them" if cut.kept < cut.files else "each" if cut.files > 1 else "which is"
    return f"{counted(cut.files, 'file')}, {which} an unchanged file of an input: {show_size(cut.kept_bytes)}"


def _number_steps(effects: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The steps with their numbers; steps within a step have none, and stand further in."""
    for number, outer in enumerate(effects, 1):
        for depth, effect in outer.walk():
            yield " " * (3 + 4 * depth) if depth else f"{number:>3}", effect


def _step(number: str, effect: Any, found: Explanation, most: int | None) -> Iterator[str]:
    step = effect.step
    place = f"  {step.span}" if step.span else ""
    yield f"{number}  {step.op.name}{place}"
    margin, nothing = " " * (len(number) + 4), True
    for word in _CHANGES:
        if names := getattr(effect, word):
            nothing = False
            yield from hanging(f"{margin}{word} {len(names):,}: ", few(names, most))
    if effect.skipped:
        yield f"{margin}skipped, a tensor is missing: {effect.skipped:,}"
    if effect.staged:
        yield f"{margin}chooses its sizes from values, which a run computes first; upper bounds are shown"
    if _waits(effect, found):
        yield f"{margin}depends on values: evaluated in the run"
    elif nothing and step.operator is not None:
        yield f"{margin}true, from headers alone"


def _waits(effect: Any, found: Explanation) -> bool:
    sink = isinstance(effect.step.op, SinkOp)
    return any(c.step is effect.step and (c.questions or (sink and not c.logged)) for c in found.program.checks)


def as_json(found: Explanation) -> dict[str, Any]:
    """The same for scripts, with all names."""
    steps = [
        {
            "op": effect.step.op.name if effect.step.op else None,
            "place": str(effect.step.span) if effect.step.span else None,
            **{word: list(getattr(effect, word)) for word in _CHANGES},
            "waits_for_values": _waits(effect, found),
            "sizes_from_values": effect.staged,
            "nested": depth > 0,
            "depth": depth,
        }
        for outer in found.program.effects
        for depth, effect in outer.walk()
    ]
    outputs = [
        {
            "path": p.path,
            "directory": p.directory,
            "bytes": p.nbytes,
            "side_files": list(p.side_names),
            "metadata_keys": list(p.metadata),
            "leaves": {name: leaf.word for name, leaf in p.tree.others.items()} if p.format.trees else {},
            "replaces": replacement_as_json(p),
            **({} if cut is None else {"files": cut.files, "files_kept": cut.kept, "bytes_kept": cut.kept_bytes}),
            "tensors": {
                name: {"shape": list(e.aval.shape), "dtype": e.aval.dtype.name} for name, e in p.tensors.items()
            },
        }
        for p, cut in zip(found.program.publications, found.cuts, strict=True)
    ]
    costs = {"bytes_copied": found.bytes_copied, "bytes_computed": found.bytes_computed, "tasks": found.tasks,
             "projected_peak_bytes": found.peak, "projected_peak_bytes_in_all": found.peak_in_all,
             "threads": found.threads}  # fmt: skip
    noted = [d for d in found.program.diagnostics if d.severity == "note"]
    notes = {"notes": list(map(str, noted)), "diagnostics": list(map(diagnostic_data, noted))}
    return {"steps": steps, "outputs": outputs, **costs, **notes}
