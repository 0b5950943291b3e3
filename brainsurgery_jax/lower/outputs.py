"""What will be written where: the outputs of a plan and its `save` steps, all of it decided and checked from headers."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.errors import Diagnostic, Refusal, Span, StoreError, did_you_mean
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.lower.state import Space, State, World
from brainsurgery_jax.op import Publish
from brainsurgery_jax.plan.model import Output, Plan, Step
from brainsurgery_jax.store.detect import OutputKind, output_kind

DEFAULT_SHARD = "5GB"


def publications(state: State, plan: Plan, world: World) -> tuple[tuple[Publication, ...], tuple[Diagnostic, ...]]:
    """Everything that a run will write, `save` steps first; and what is wrong with it."""
    problems: list[Diagnostic] = []
    made = {world.key(p.path): p for p in state.publications}
    for output in plan.outputs:
        try:
            alias = _alias_of(output, state)
            space = state.spaces[alias]
            if space.tainted or any(e.kind == "poison" for e in space.names.values()):
                continue
            p = _publication(output, dict(space.names), _origin(space, state), space.metadata, world, output.span)
            if world.key(p.path) in made and not output.overwrite:
                raise Refusal(
                    "output-twice",
                    f"'{p.path}' is written twice by this plan",
                    key="path",
                    hint="Add `overwrite: true` to the later one.",
                )
            made[world.key(p.path)] = p
        except Refusal as bad:
            place = output.spans.get((bad.key,), output.span)
            problems.append(Diagnostic(bad.code, f"output.{bad.key or 'path'}: {bad.message}", place, bad.hint))
    return tuple(made.values()), tuple(problems)


def publication(
    edit: Publish, tensors: Mapping[str, Expr], space: Space | None, step: Step, world: World
) -> Publication:
    """What a `save` step will write. Raises Refusal."""
    output = Output(edit.path, edit.alias, edit.format, edit.shard, edit.overwrite, sidecars=edit.names is None)
    origin, metadata = (space.origin, space.metadata) if space else (None, {})
    return _publication(output, tensors, origin, metadata, world, step.span)


def _publication(
    output: Output,
    tensors: Mapping[str, Expr],
    origin: str | None,
    metadata: Mapping[str, str],
    world: World,
    span: Span | None,
) -> Publication:
    kind = _kind(output)
    if not tensors:
        raise Refusal("output-empty", f"there are no tensors in '{output.alias or 'the alias'}' to write", key="path")
    for name, expr in tensors.items():
        if not expr.aval.dtype.tag:
            found = f"'{name}' is {expr.aval}, which safetensors cannot hold"
            raise Refusal("dtype-unsavable", found, key="path", hint="Cast it, or delete it before the output.")
    shard = kind.shard_bytes
    made = Publication(
        kind.path, kind.directory, tensors, {**metadata, **output.metadata}, shard, origin if output.sidecars and kind.directory else None,
        output.overwrite, span,
    )  # fmt: skip
    try:
        world.check_destination(made.path, made.nbytes, overwrite=output.overwrite)
    except StoreError as bad:
        raise Refusal("io-output", f"{bad.path}: {bad.problem}", key="path", hint=bad.remedy) from bad
    return made


def _kind(output: Output) -> OutputKind:
    try:
        kind = output_kind(output.path, output.format, output.shard)
        if output.shard is None and kind.directory:
            return output_kind(output.path, output.format, DEFAULT_SHARD)
        return kind
    except ValueError as bad:
        raise Refusal("output-path", str(bad), key="path") from bad


def _origin(space: Space, state: State) -> str | None:
    """Where the side files of an output come from: the checkpoint behind its alias, else the first input."""
    return space.origin or next((s.origin for s in state.spaces.values() if s.origin), None)


def _alias_of(output: Output, state: State) -> str:
    """The alias to save: named, or the only one that steps wrote to, or the only one there is."""
    filled = [a for a, s in state.spaces.items() if s.names or s.tainted]
    if output.alias is not None:
        if output.alias not in state.spaces:
            near = did_you_mean(output.alias, filled)
            raise Refusal(
                "alias-unknown",
                f"unknown alias '{output.alias}'.{near}",
                key="alias",
                hint=f"There are: {', '.join(filled)}.",
            )
        return output.alias
    written = [a for a in filled if a in state.written]
    candidates = written or filled
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise Refusal("output-empty", "no alias holds any tensor at the end of the plan", key="path")
    names = ", ".join(f"'{a}'" for a in candidates)
    why = "steps wrote to each of them" if written else "no step wrote to any of them"
    hint = f"Say which: `output: {{path: {output.path}, alias: {candidates[0]}}}`."
    raise Refusal("output-ambiguous", f"which alias is to be written? {names}: {why}", key="path", hint=hint)
