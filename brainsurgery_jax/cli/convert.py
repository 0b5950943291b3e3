"""`convert` and `layouts`: conversions from the command line, and what the layouts are and prove."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.conversion import Request, execute, prepare
from brainsurgery_jax.errors import PlanError, did_you_mean
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.library import family_names, layout_names, layouts_of, unknown_layout
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.proof import Proof, proofs
from brainsurgery_jax.store.sizes import parse_size
from brainsurgery_jax.world import DEFAULT_SHARD, Files


def convert(
    source: str, destination: str, request: Request, *, memory: str | None, fsync: bool, dry_run: bool, quiet: bool
) -> None:
    """Convert a checkpoint; what is done goes to stderr. Raises PlanError or StoreError."""
    from brainsurgery_jax.cli.progress import watching

    budget = None if memory is None else _size(memory, "--memory")
    if request.shard is not None:
        _size(request.shard, "--shard-size")
    made = prepare(source, destination, request)
    if not quiet:
        show.remark(f"{source} -> {destination}: {made}")
        if made.remark:
            show.remark(f"note: {made.remark}", "yellow")
    world = Files(overwrite=request.overwrite or dry_run, default_shard=DEFAULT_SHARD)
    with watching(quiet=quiet, verbose=False) as listen:
        report = execute(made, listen=listen, memory=budget, durable=fsync, dry_run=dry_run, world=world)
    if not quiet:
        show.diagnostics(replace(note, span=None) for note in report.notes)
    if dry_run and not quiet:
        show.remark("dry run: nothing was written", "green")
    elif request.verify and not quiet:
        show.remark(made.verification, "green")


def _size(text: str, option: str) -> int | None:
    try:
        return parse_size(text)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint=option) from bad


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
        show.result(jsonlib.dumps({"schema_version": 1, "layouts": list(map(_as_json, found))}, indent=2))
    elif words and len(found) == len(words):
        show.result("\n".join(line for layout in found for line in _page(layout)))
    else:
        rows = [(layout.name, ", ".join(layout.models) or "every model", layout.doc) for layout in found]
        show.result("\n".join(show.aligned(rows)))
    return 0


def _as_json(layout: Layout) -> dict[str, Any]:
    return {
        "name": layout.name, "doc": layout.doc, "source": layout.source, "models": list(layout.models),
        "format": layout.format, "options": {name: layout.defaults.get(name) for name in layout.options},
    }  # fmt: skip


def _page(layout: Layout) -> list[str]:
    options = ", ".join([
        *(f"{name}={value}" for name, value in layout.defaults.items()),
        *(f"{name} (to be given where config.json does not settle it)" for name in layout.choices),
    ])  # fmt: skip
    rows = [("for", ", ".join(layout.models) or "every model"), ("options", options or "none"), ("see", layout.source)]
    rules = [(rule.hf[0].text, "<->", rule.to[0].text, _ops(rule.ops)) for rule in layout.rules]
    head = [layout.name, "", layout.doc, "", *show.aligned([row for row in rows if row[1]])]
    return [*head, "", *show.aligned(rules)] if rules else [*head, "", "every tensor keeps its name"]


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
        show.result(jsonlib.dumps({"schema_version": 1, "proofs": [*map(_proof_json, found), *wrong]}, indent=2))
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


def _proof_json(proof: Proof) -> dict[str, Any]:
    return {
        "layout": proof.layout.name, "options": dict(proof.options), "holds": proof.holds, "tensors": proof.hf,
        "target_tensors": proof.target, "lossy": list(proof.lossy), "dropped": list(proof.dropped),
        "problems": list(map(str, proof.problems)),
    }  # fmt: skip
