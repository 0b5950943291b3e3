"""`convert` and `layouts`: conversions from the command line, and what the layouts are and prove."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import typer

from brainsurgery_jax.api import Report
from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.cli.stopping import stop_by_ctrl_c
from brainsurgery_jax.conversion import Conversion, Request, execute, prepare
from brainsurgery_jax.errors import PlanError, did_you_mean
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.library import family_names, layout_names, layouts_of, unknown_layout
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.proof import Proof, proofs
from brainsurgery_jax.rendering.data import diagnostic_data
from brainsurgery_jax.rendering.text import align_columns
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.world import DEFAULT_SHARD, Files


class Verbosity(NamedTuple):
    """What is printed of a conversion."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False


def convert(source: str, destination: str, request: Request, options: RunOptions, watch: Verbosity) -> None:
    """Convert a checkpoint; what is done goes to stderr, or as JSON to stdout. Raises PlanError or StoreError."""
    from brainsurgery_jax.cli.progress import collect, watching

    size_of(request.shard, "--shard-size")
    made = prepare(source, destination, request)
    world = Files(overwrite=request.overwrite or options.dry_run, default_shard=DEFAULT_SHARD)
    quiet = watch.quiet
    if watch.json:
        with stop_by_ctrl_c(replace(options, listen=collect([]))) as stoppable:
            _show_data(made, execute(made, stoppable, world))
        return
    if not quiet:
        show.remark(f"{source} -> {destination}: {made}")
        if made.remark:
            show.remark(f"note: {made.remark}", "yellow")
    with (
        watching(quiet=quiet, verbose=watch.verbose) as listen,
        stop_by_ctrl_c(replace(options, listen=listen)) as stoppable,
    ):
        report = execute(made, stoppable, world)
    if not quiet:
        show.diagnostics(replace(note, span=None) for note in report.notes)
    if options.dry_run and not quiet:
        show.remark("dry run: nothing was written", "green")
    elif request.verify and not quiet:
        show.remark(made.verification, "green")


def _show_data(made: Conversion, report: Report) -> None:
    """Print what a conversion did, for programs."""
    verification = made.verification if made.request.verify and not report.dry_run else None
    published = [{"path": path, "bytes": nbytes, "tensors": count} for path, nbytes, count in report.published]
    show.json(
        ok=True, conversion=str(made), remark=made.remark or None, dry_run=report.dry_run, published=published,
        verification=verification, diagnostics=list(map(diagnostic_data, report.notes)),
    )  # fmt: skip


def options_of(words: Iterable[str]) -> dict[str, Value]:
    """The options that `NAME=VALUE` words spell."""
    found: dict[str, Value] = {}
    for word in words:
        name, mark, value = word.partition("=")
        if not mark or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, got '{word}'", param_hint="--option")
        found[name] = {"true": True, "false": False}.get(value, int(value) if value.isdecimal() else value)
    return found


# --- Layouts ----------------------------------------------------------------------------------------------------------


def layouts(words: Sequence[str], *, json: bool) -> int:
    """Print all layouts, one of them, those of a library, or (`check`) what they prove; yields the exit code."""
    if words[:1] == ["check"]:
        return _check(words[1:] or layout_names(), json=json)
    if words and words[0] not in (*layout_names(), *family_names()) and did_you_mean(words[0], ["check"]):
        raise unknown_layout(words[0], "check")
    found = [layout for word in words or layout_names() for layout in layouts_of(word)]
    if json:
        show.json(layouts=list(map(_as_json, found)))
    elif words and len(found) == len(words):
        show.result("\n".join(line for layout in found for line in _page(layout)))
    else:
        rows = [(layout.name, ", ".join(layout.models) or "every model", layout.doc) for layout in found]
        show.result("\n".join(align_columns(rows)))
    return 0


def _as_json(layout: Layout) -> dict[str, object]:
    return {
        "name": layout.name, "doc": layout.doc, "source": layout.source, "models": list(layout.models),
        "format": layout.format, "options": {name: layout.defaults.get(name) for name in layout.options},
    }  # fmt: skip


def _page(layout: Layout) -> list[str]:
    options = ", ".join([
        *(f"{name}={value}" for name, value in layout.defaults.items()),
        *(f"{name} (needed if config.json does not determine it)" for name in layout.choices),
    ])  # fmt: skip
    rows = [("for", ", ".join(layout.models) or "every model"), ("options", options or "none"), ("see", layout.source)]
    rules = [(rule.hf[0].text, "<->", rule.to[0].text, _ops(rule.ops)) for rule in layout.rules]
    head = [layout.name, "", layout.doc, "", *align_columns([row for row in rows if row[1]])]
    return [*head, "", *align_columns(rules)] if rules else [*head, "", "every tensor keeps its name"]


def _ops(uses: Iterable[Any]) -> str:
    return " ".join(use.name for use in uses)


def _check(names: Iterable[str], *, json: bool) -> int:
    """Print the proof of each layout, for its own example and every setting of its switches."""
    found: list[Proof] = []
    broken: list[tuple[str, PlanError]] = []
    for name in names:
        try:
            found += (proof for layout in layouts_of(name) for proof in proofs(layout))
        except PlanError as error:
            broken.append((name, error))
    if json:
        wrong = [{"layout": name, "holds": False, "problems": str(error)} for name, error in broken]
        show.json(proofs=[*map(_proof_json, found), *wrong])
    else:
        for proof in found:
            show.result("\n".join(_proof(proof)))
        for _, error in broken:
            show.diagnostics(error.diagnostics)
    return 1 if broken or not all(p.holds for p in found) else 0


def _label(proof: Proof) -> str:
    told = ", ".join(f"{k}={v}" for k, v in proof.options.items() if isinstance(v, bool))
    return f"{proof.layout.name} ({told})" if told else proof.layout.name


def _proof(proof: Proof) -> list[str]:
    if not proof.holds:
        return [f"{_label(proof)}: WRONG", *(f"  {problem}" for problem in proof.problems)]
    if proof.layout.rest and not proof.hf:
        return [f"{_label(proof)}: every name there and back, nothing is computed"]
    lines = [f"{_label(proof)}: {proof.hf} tensors <-> {proof.target}, names one to one, shapes close, ops invertible"]
    return [*lines, *(f"  loses bits: {why}" for why in proof.lossy), *(f"  {why}" for why in proof.dropped)]


def _proof_json(proof: Proof) -> dict[str, object]:
    return {
        "layout": proof.layout.name, "options": dict(proof.options), "holds": proof.holds, "tensors": proof.hf,
        "target_tensors": proof.target, "lossy": list(proof.lossy), "dropped": list(proof.dropped),
        "problems": list(map(str, proof.problems)),
    }  # fmt: skip
