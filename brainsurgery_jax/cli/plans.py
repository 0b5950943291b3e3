"""`run`, `check` and `explain`: plans from the command line to the library, and the outcome as text or JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from brainsurgery_jax import api, plugins
from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.failures import print_failure_as_json
from brainsurgery_jax.cli.options import NO_MORE, More
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.cli.stopping import stop_by_ctrl_c
from brainsurgery_jax.documents import Document, Entry, Record, show_only
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from brainsurgery_jax.plan.resolved import resolve as resolve_plan
from brainsurgery_jax.plan.source import compose, dump_yaml, plain
from brainsurgery_jax.plan.written import refuse_other_files, write_plan
from brainsurgery_jax.protocol import Flags
from brainsurgery_jax.rendering.data import diagnostic_data, document_data, record_data
from brainsurgery_jax.reports.explanation import is_replacement, replacement_of, replaces, report_explanation
from brainsurgery_jax.reports.work import report_work
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted
from brainsurgery_jax.world import Elsewhere, Files

if TYPE_CHECKING:
    from brainsurgery_jax.engine.compute.devices import Devices


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of `run`. `lost` are the given options that have no effect any more; `process` is which process of a
    run over several this is: the fields of a `ProcessAddress`."""

    overwrite: bool = False
    dry_run: bool = False
    fsync: bool = True
    shard_size: str = "5GB"
    memory: str | None = None
    devices: str = "all"
    preview: bool = False
    verbose: bool = False
    quiet: bool = False
    summarize: bool = False
    summarize_path: str | None = None
    resolve: bool = False
    json: bool = False
    lock: bool | str | None = None
    sha256: bool = False
    locked: tuple[str, ...] = ()
    resume: bool = False
    hard_links: bool = False
    process: tuple[str | None, int | None, int | None, float] | None = None
    lost: tuple[str, ...] = ()


def run(items: Sequence[str], choices: Choices) -> None:
    """Run a plan; its reports go to stdout. Raises PlanError or StoreError."""
    from brainsurgery_jax.cli.progress import watching

    for option in choices.lost:
        show.remark(f"note: --{option} is accepted but has no effect", "yellow")
    files = files_of(choices.overwrite or choices.dry_run, choices.shard_size)
    options = options_of(choices)
    plan = api.load(*items)
    refuse_summary(plan, choices)
    notes = [d for d in plan.problems if d.severity == "note"]
    if choices.json:
        show.json(**run_as_data(plan, options, files, choices))
        return
    show.diagnostics(notes)
    with (
        watching(quiet=choices.quiet, verbose=choices.verbose) as listen,
        stop_by_ctrl_c(replace(options, listen=listen)) as stoppable,
    ):
        report = api.run_with(plan, stoppable, files)
    show.diagnostics(report.notes)
    if report.process:
        if not choices.quiet:
            show.remark(f"process {report.process}: done", "green")
        return
    if not report.published and not choices.quiet:
        nothing = "dry run: nothing was written" if report.dry_run else "done: no output, so nothing was written"
        show.remark(nothing, "green")
    if choices.summarize:
        summarize(summary(plan, report, resolve=choices.resolve), choices, dry_run=report.dry_run)


def run_as_data(plan: api.Plan, options: RunOptions, files: Files, choices: Choices) -> Mapping[str, object]:
    """Run a plan; what it did, for programs. Exits with a failure as JSON, the reports that came before in it."""
    from brainsurgery_jax.cli.progress import collect

    reports: list[Document] = []
    with print_failure_as_json(reports), stop_by_ctrl_c(replace(options, listen=collect(reports))) as stoppable:
        report = api.run_with(plan, stoppable, files)
    notes = [d for d in plan.problems if d.severity == "note"]
    return _run_json(plan, report, notes, choices)


def _run_json(
    plan: api.Plan, report: api.Report, notes: Sequence[Diagnostic], choices: Choices
) -> Mapping[str, object]:
    """What a run did, for programs. With `--summarize-path` the summary is written as well."""
    text = summary(plan, report, resolve=choices.resolve)
    if choices.summarize and choices.summarize_path is not None:
        summarize(text, choices, dry_run=report.dry_run)
    found = {
        "ok": True, "dry_run": report.dry_run, "reports": list(map(document_data, report.documents)),
        "published": publications_as_json(report), "diagnostics": list(map(diagnostic_data, (*notes, *report.notes))),
    }  # fmt: skip
    return found | ({"summary": plain_yaml(text)} if choices.summarize else {})


def plain_yaml(text: str) -> object:
    """YAML text of ours as plain data."""
    root = compose(text, "<summary>")
    return None if root is None else plain(root)


def publications_as_json(report: api.Report) -> list[dict[str, object]]:
    """The checkpoints that a run wrote, for programs."""
    return [{"path": path, "bytes": nbytes, "tensors": count} for path, nbytes, count in report.published]


def options_of(choices: Choices) -> RunOptions:
    """How to run, by the options of a command. Raises BadParameter."""
    from brainsurgery_jax.engine.run.joining import ProcessAddress

    return RunOptions(
        memory=size_of(choices.memory, "--memory"),
        devices=devices_of(choices.devices),
        durable=choices.fsync,
        overwrite=choices.overwrite,
        dry_run=choices.dry_run,
        lock=choices.lock or True if choices.sha256 else choices.lock,
        sha256=choices.sha256,
        locked=choices.locked,
        resume=choices.resume,
        hard_links=choices.hard_links,
        distributed=None if choices.process is None else ProcessAddress(*choices.process),
        flags=Flags(preview=choices.preview, verbose=choices.verbose),
    )


def files_of(overwrite: bool, shard_size: str, *, elsewhere: bool = False) -> Files:
    """The files that the options of a command select; `elsewhere`: for a run on other machines."""
    size_of(shard_size, "--shard-size")
    files = (Elsewhere if elsewhere else Files)(overwrite=overwrite, default_shard=shard_size)
    files.also_reads(*plugins.files())
    return files


def devices_of(text: str) -> Devices:
    """The accelerators that the value of `--devices` stands for. Raises BadParameter."""
    if text == "all" or text == "cpu":
        return text
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    raise typer.BadParameter(f"expected a number above 0, all or cpu, got '{text}'", param_hint="--devices")


def summary(plan: api.Plan, report: api.Report, *, resolve: bool) -> str:
    """The steps that ran, as a plan; with `resolve` one that reads and writes what this one did."""
    return dump_yaml(resolve_plan(plan.data, report.steps) if resolve else {"transforms": list(report.steps)})


def refuse_summary(plan: api.Plan, choices: Choices) -> None:
    """Raise BadParameter if the summary would be written over what the run reads or writes, and StoreError for another
    file that is no plan."""
    if choices.summarize_path is None:
        return
    wanted = os.path.realpath(os.path.expanduser(choices.summarize_path))
    for path in (*plan.files, *plugins.files(), *(i.path for i in plan.data.inputs)):
        place = os.path.realpath(os.path.expanduser(path))
        if wanted in (place, os.path.join(place, os.path.basename(wanted))):
            message = f"'{choices.summarize_path}' is, or is inside, an input of this run. Name another file."
            raise typer.BadParameter(message, param_hint="--summarize-path")
    if wanted in (os.path.realpath(os.path.expanduser(out.path)) for out in plan.data.outputs):
        message = f"'{choices.summarize_path}' is an output of this run. Name another file."
        raise typer.BadParameter(message, param_hint="--summarize-path")
    refuse_other_files(choices.summarize_path)


def summarize(text: str, choices: Choices, *, dry_run: bool) -> None:
    """Print a summary, or write it to the file that was named (after a dry run, to none)."""
    if choices.summarize_path is None:
        show.result(text.rstrip("\n"))
    elif not dry_run:
        try:
            write_plan(choices.summarize_path, text)
        except StoreError as error:
            show.result(text.rstrip("\n"))
            problem = f"the summary could not be written, so it was printed: {error.problem}"
            raise StoreError(choices.summarize_path, f"{problem}. The outputs of the plan are in place") from error


def check(items: Sequence[str], ops: Sequence[str] = (), *, overwrite: bool, shard_size: str, json: bool) -> int:
    """Print every mistake of a plan, or what it does if there is none; yields the exit code."""
    files = files_of(overwrite, shard_size)
    try:
        plugins.register(*ops)
        plan = api.load(*items)
        program = api.lower_plan(plan, files)
    except PlanError as error:
        plan, program, found = None, None, error.diagnostics
    else:
        found = program.diagnostics
    code = show.exit_code(found)
    reads = {i.alias: len(files.open(i.path).header.tensors) for i in plan.data.inputs} if plan and not code else {}
    publications = program.publications if program is not None and not code else ()
    if json:
        show.json(**check_as_data(found, publications))
        return code
    show.diagnostics(found)
    if code:
        show.remark(counted(sum(d.severity == "error" for d in found), "mistake"))
    elif plan is not None:
        show.result(_fine(len(plan.data.steps), reads, publications))
        for p in filter(is_replacement, publications):
            show.result(replaces(p))
    return code


def check_as_data(found: Sequence[Diagnostic], publications: Sequence[Any]) -> dict[str, Any]:
    """The mistakes and notes of a plan, and its outputs, for programs."""
    outputs = [{"path": p.path, "replaces": replacement_of(p)} for p in publications]
    told = [diagnostic_data(d) for d in show.in_order(found)]
    return {"ok": not show.exit_code(found), "diagnostics": told, "outputs": outputs}


def _fine(steps: int, reads: Mapping[str, int], publications: Sequence[Any]) -> str:
    parts = [f"ok: {counted(steps, 'step')}"]
    if reads:
        parts.append("reads " + " and ".join(f"{a} ({counted(n, 'tensor')})" for a, n in reads.items()))
    writes = [f"writes {p.path} ({counted(len(p.tensors), 'tensor')}, {show_size(p.nbytes)})" for p in publications]
    return ", ".join([*parts, *(writes or ["writes nothing"])])


def explain(items: Sequence[str], more: More = NO_MORE, *, overwrite: bool, shard_size: str, json: bool) -> None:
    """Print what a run would do. Raises PlanError where it could not, and BadParameter."""
    plan = api.load(*items)
    elsewhere = more.hosts is not None
    world = files_of(True, shard_size, elsewhere=elsewhere)
    found = api.explain(plan, world, memory=size_of(more.memory, "--memory"))
    most = None if more.everything else 3
    told = report_explanation(found, most, overwrite=overwrite).entries
    report = Record((*told, *(report_work(found, most).entries if more.work else ()), *_hosts(found, more)))
    if json:
        show.json(**record_data(report))
        return
    show.diagnostics(d for d in found.program.diagnostics if d.severity == "note")
    show.report(report)


def _hosts(found: api.Explanation, more: More) -> tuple[Entry, ...]:
    if more.hosts is None:
        return ()
    from brainsurgery_jax.reports.hosts import read_cluster, report_hosts

    try:
        cluster = read_cluster(more.cluster, found, more.hosts)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--cluster") from bad
    modelled = report_hosts(found, cluster, everything=more.everything)
    data = tuple(entry for entry in modelled.entries if entry.key)
    shown = tuple(entry.shown for entry in modelled.entries if entry.shown is not None)
    return (Entry("cluster", Record(data)), *show_only(*shown))
