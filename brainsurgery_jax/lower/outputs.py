"""The publications of a plan: its outputs and `save` steps, decided from headers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from brainsurgery_jax.config_patch import GENERATION_CONFIG
from brainsurgery_jax.errors import Diagnostic, Refusal, Span, StoreError, did_you_mean, worded
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.adapters import adapter_config, dump_adapter_config
from brainsurgery_jax.lower.configs import CONFIG, change_config, doubts, read_config, side_file
from brainsurgery_jax.lower.consistency import consistency_notes
from brainsurgery_jax.lower.neighbours import note_neighbours
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.lower.remedies import storing_hint
from brainsurgery_jax.lower.scales import describes_codes, scale_notes
from brainsurgery_jax.lower.side_configs import TEMPLATE, TOKENIZER_CONFIG, write_side_configs
from brainsurgery_jax.lower.state import Extras, Space, State, World
from brainsurgery_jax.plan.model import Output, PlanData, Step
from brainsurgery_jax.protocol import Publish
from brainsurgery_jax.store.base import Held, Nest, Source, WriteOptions
from brainsurgery_jax.store.detect import OutputKind, output_kind, parse_size
from brainsurgery_jax.store.folder import ADAPTER_CONFIG
from brainsurgery_jax.store.formats import carry_metadata, find_format, read_options
from brainsurgery_jax.store.key_paths import NOTES
from brainsurgery_jax.store.key_tree import KeyTree, tree_in
from brainsurgery_jax.store.nesting import nest_of, select_values
from brainsurgery_jax.store.peft import IN_METADATA
from brainsurgery_jax.store.replacing import Replacement
from brainsurgery_jax.store.sidecars import SideFiles, is_of_tokenizer
from brainsurgery_jax.wording import few

_WITHOUT_INPUT = "Give the plan `inputs:`, or `load` a checkpoint."


def publications(state: State, plan: PlanData, world: World) -> tuple[tuple[Publication, ...], tuple[Diagnostic, ...]]:
    """All publications of a run, `save` steps first, and their mistakes."""
    problems: list[Diagnostic] = []
    made = {world.key(p.path): p for p in state.publications}
    for output in plan.outputs:
        try:
            p = _output(output, state, world)
            if p is not None and not state.flags.dry_run:
                _refuse_second(p, made, world)
                made[world.key(p.path)] = p
            extras = None if p is None else _extras(state.spaces[alias_of(output, state)], state)
            if p is not None and extras is not None:
                problems += config_notes(p, replace(output, alias=alias_of(output, state)), extras, state, world)
            problems += _note_dropped_leaves(output, p) if p is not None else ()
            problems += _not_kept(output, p)
        except Refusal as bad:
            place = output.spans.get((bad.key,), output.span)
            problems.append(Diagnostic(bad.code, f"output.{bad.key or 'path'}: {bad.message}", place, bad.hint))
    origins = dict.fromkeys(space.extras.origin for space in state.spaces.values() if space.extras.origin)
    notes = *_not_copied(made.values()), *note_neighbours(made.values(), origins, world)
    return tuple(made.values()), (*problems, *notes)


def _not_copied(made: Iterable[Publication]) -> Iterator[Diagnostic]:
    """Notes on side files that no output gets, one for each folder."""
    hint = (
        "Only files that model repositories use travel with a checkpoint; docs/formats.md lists them. Copy others "
        "yourself."
    )
    for sidecars, p in {p.sidecars: p for p in reversed([*made]) if p.sidecars}.items():
        if left := [name for name in sidecars.left if name not in p.side_files]:
            files, verb = ("a file", "is") if len(left) == 1 else (f"{len(left)} files", "are")
            message = f"output: {files} of {sidecars.folder} {verb} not copied: {few(left)}"
            yield Diagnostic("sidecars-left", message, p.span, hint, "note")


def _note_dropped_leaves(output: Output, p: Publication) -> Iterator[Diagnostic]:
    """Notes on leaves that an output does not hold: texts, and empty leaves if the format has no metadata for them."""
    alone, full = "holds tensors alone", "has no room for notes on a tree this large"
    texts = () if p.format.trees else p.tree.texts
    empty = () if p.format.trees or NOTES in p.metadata else p.tree.empty
    for names, what, why in ((texts, "text", alone), (empty, "empty", full if p.format.metadata_bytes else alone)):
        if names:
            message = f"output: {p.format.name} {why}; left out, since they are {what}: {few([*names])}"
            hint = "Write `format: orbax` in the output to keep them."
            yield Diagnostic("input-left-out", message, output.span, hint, "note")


def _output(output: Output, state: State, world: World) -> Publication | None:
    """The publication of an output; None if it is unknown because an earlier step failed."""
    kind = _kind(output, world.default_shard)
    try:
        alias = alias_of(output, state)
    except Refusal:
        if state.doubtful:
            return None
        raise
    space = state.spaces[alias]
    extras = _extras(space, state)
    if space.tainted or space.unknown or extras.doubtful:
        _check_destination(kind, 0, output.overwrite, world)
        return None
    return _publication(replace(output, alias=alias), dict(space.names), extras, world, output.span)


def config_notes(
    made: Publication, output: Output, extras: Extras, state: State, world: World, label: str = "output"
) -> Iterator[Diagnostic]:
    """Notes on an output or a step `save` (`label`): suspicious keys in its `config`, and disagreements between
    config.json and the tensors."""
    for place, message, hint in doubts(output, extras, world):
        span = output.spans.get(("config", *place), output.span)
        yield Diagnostic("config-key", f"{label}.config: {message}", span, hint, "note")
    changed = [file for file in extras.configs if file not in (ADAPTER_CONFIG, GENERATION_CONFIG)]
    if not made.directory and changed:
        files = " and no ".join(changed)
        message = f"{label}: '{made.path}' is a single file, which has no {files}: what steps changed is not kept"
        hint = "Write to a folder: a path without suffix, or one that ends in a slash."
        yield Diagnostic("output-config", message, output.span, hint, "note")
    yield from scale_notes(made, output, label, lambda: _find_known_config(extras, world), state.spaces)
    yield from consistency_notes(made, output, state, world, label)


def _find_known_config(extras: Extras, world: World) -> object:
    """The config of what is written, as far as it is known: one that is no JSON is copied, and says nothing."""
    try:
        found = None if extras.doubtful else read_config(extras, world)
    except Refusal:
        return None
    return None if found is None else found[1]


def _not_kept(output: Output, made: Publication | None) -> Iterator[Diagnostic]:
    """A note on values that `keep` includes and that cannot be written."""
    if made is not None and made.nest is not None and made.nest.left_out:
        names = ", ".join(made.nest.left_out[:6]) + (" ..." if len(made.nest.left_out) > 6 else "")
        message = f"output.options: values that are no plain data are not kept: {names}"
        yield Diagnostic("values-left-out", message, output.spans.get(("options",), output.span), severity="note")


def _refuse_second(p: Publication, made: Mapping[str, Publication], world: World) -> None:
    place = world.key(p.path)
    if place in made and not p.overwrite:
        hint = "Write to another path, or add `overwrite: true` here, and only this one will be kept."
        raise Refusal("output-twice", f"'{p.path}' is written twice by this plan", key="path", hint=hint)
    for other, earlier in made.items():
        if place != other and inside(place, other):
            message = f"'{p.path}' lies inside or around '{earlier.path}', which this plan writes, too"
            raise Refusal("output-inside", message, key="path", hint="Write to a path of its own.")


def inside(place: str, other: str) -> bool:
    """Whether two paths are equal, or one lies below the other."""
    return place == other or place.startswith(other + "/") or other.startswith(place + "/")


def output_of(edit: Publish, step: Step) -> Output:
    """The output that a `save` step stands for."""
    return Output(
        edit.path, edit.alias, edit.format, edit.shard, edit.overwrite, edit.sidecars, edit.config, edit.metadata,
        edit.options, span=step.span, spans=step.spans,
    )  # fmt: skip


def publication(
    edit: Publish, tensors: Mapping[str, Expr], space: Space | None, step: Step, world: World
) -> Publication:
    """The publication of a `save` step. Raises Refusal."""
    output = output_of(edit, step)
    if edit.names is not None and "bare" in _kind(output, world.default_shard).format.options:
        output = replace(output, options={"bare": True, **output.options})
    extras = space.extras if space else Extras()
    if edit.names is not None:  # of a single tensor no config says anything
        extras = replace(extras, configs={}, tree=extras.tree.choose({name: name for name in tensors}, {}))
    return _publication(output, tensors, extras, world, step.span)


def _publication(
    output: Output, tensors: Mapping[str, Expr], extras: Extras, world: World, span: Span | None
) -> Publication:
    origin = extras.origin
    kind = _kind(output, world.default_shard)
    if not tensors:
        hint = "Every tensor was deleted or moved away. Write another alias (`alias: NAME`), or drop this output."
        raise Refusal(
            "output-empty", f"'{output.alias or 'the alias'}' holds no tensor to write", key="path", hint=hint
        )
    tree = tree_in(output.metadata, tensors) if NOTES in output.metadata else extras.tree
    carried = {**carry_metadata(_metadata(extras)), **output.metadata}
    metadata = {key: text for key, text in carried.items() if key != NOTES and output.metadata.get(key) != ""}
    made = Publication(
        path=kind.path,
        directory=kind.directory,
        tensors=tensors,
        metadata={**metadata, **_tree_notes(kind, tree, tensors, metadata)},
        tree=tree,
        shard_bytes=kind.shard_bytes,
        sidecars=_copy_side_files(extras, kind, tensors, world) if output.sidecars and kind.directory else None,
        overwrite=output.overwrite,
        span=span,
        format=kind.format,
        options=kind.options,
        keep_files=output.shard is None,
        nest=_nest(kind, tensors, origin, world),
        side_files=_side_files(output, kind, tensors, extras, world),
        kept=_kept(output, tensors) if kind.format.keeps else {},
        alias=output.alias or "",
    )
    _check_storable(made)
    return made._replace(replaces=_check_destination(kind, made.disk_bytes, output.overwrite, world))


def _kept(output: Output, tensors: Mapping[str, Expr]) -> dict[str, Held]:
    """The tensors that a delta leaves in its base: the checkpoint that holds most of them as they are."""
    by_source: dict[Source, dict[str, Held]] = {}
    sizes: Counter[Source] = Counter()
    for name, e in tensors.items():
        if e.is_leaf:
            by_source.setdefault(e.source, {})[name] = Held(e.source, e.name)
            sizes[e.source] += e.aval.nbytes
    if not by_source:
        hint = "Write `format: safetensors`: every tensor is new."
        raise Refusal("output-format", f"'{output.path}' would be a delta without a base", key="format", hint=hint)
    return by_source[sizes.most_common(1)[0][0]]


def _tree_notes(
    kind: OutputKind, tree: KeyTree, tensors: Mapping[str, Expr], metadata: Mapping[str, str]
) -> dict[str, str]:
    """The notes on a tree for the metadata of a format without trees; empty if the format has no metadata."""
    notes = {} if kind.format.trees else tree.notes(tensors).encode()
    most = kind.format.metadata_bytes
    return notes if most is None or len(json.dumps({**metadata, **notes})) <= most else {}


def _metadata(extras: Extras) -> Mapping[str, str]:
    """The header metadata, with the current config of an adapter."""
    if IN_METADATA not in extras.metadata or ADAPTER_CONFIG not in extras.configs:
        return extras.metadata
    return {**extras.metadata, IN_METADATA: dump_adapter_config(extras.configs[ADAPTER_CONFIG]).decode()}


def _copy_side_files(extras: Extras, kind: OutputKind, tensors: Mapping[str, Expr], world: World) -> SideFiles | None:
    """The side files that an output gets from its original checkpoint. An adapter does not get the config.json of its
    base: loaders would take its folder for a model. Floats do not get what describes codes, and a model with another
    tokenizer gets nothing of its old one."""
    origin = extras.origin
    if origin is None:
        return None
    try:
        found = world.side_files(origin)
        if found is not None and extras.has_new_tokenizer:
            found = found._replace(copied=tuple(name for name in found.copied if not is_of_tokenizer(name)))
        if found is not None:
            found = found._replace(copied=tuple(name for name in found.copied if name not in _rewritten(extras)))
        if found is not None and found.of_floats != found:
            now = {name: expr.aval for name, expr in tensors.items()}
            then = {name: info.aval for name, info in world.open(origin).header.tensors.items()}
            found = found if describes_codes(now, then) else found.of_floats
        if found is None or kind.format.config_file != ADAPTER_CONFIG or ADAPTER_CONFIG in found.copied:
            return found
        return found._replace(copied=tuple(name for name in found.copied if name != CONFIG))
    except StoreError as bad:
        raise Refusal("io-input", f"{bad.path}: {bad.problem}", key="path", hint=bad.remedy) from bad


def _rewritten(extras: Extras) -> tuple[str, ...]:
    """The files that are not copied since steps changed what they say."""
    return (TOKENIZER_CONFIG, TEMPLATE) if TOKENIZER_CONFIG in extras.configs else ()


def _side_files(
    output: Output, kind: OutputKind, tensors: Mapping[str, Expr], extras: Extras, world: World
) -> dict[str, bytes]:
    """The configs of an output that differ from those of its original checkpoint. Raises Refusal."""
    adapter = kind.format.config_file == ADAPTER_CONFIG
    wanted = output.config or CONFIG in extras.configs or not adapter
    config = change_config(output, kind, tensors, extras, world) if wanted else None
    made = {} if config is None else {CONFIG: config}
    if kind.directory and output.sidecars and extras.has_new_tokenizer:
        made |= extras.made_tokenizer or dict(_tokenizer_files(extras.tokenizer, world))
    if kind.directory:
        made = {name: made[name] for name in made if name not in _rewritten(extras)}
        made |= dict(write_side_configs(extras, world))
    if kind.directory and ADAPTER_CONFIG in extras.configs:
        made[ADAPTER_CONFIG] = dump_adapter_config(extras.configs[ADAPTER_CONFIG])
    if adapter:
        avals = {name: expr.aval for name, expr in tensors.items()}
        copied = extras if output.sidecars else replace(extras, origin=None)
        made[ADAPTER_CONFIG] = adapter_config(kind.options.get("config") or {}, avals, copied, world)
    return made


def _tokenizer_files(origin: str | None, world: World) -> Iterator[tuple[str, bytes]]:
    """The files of the tokenizer beside a checkpoint. Raises Refusal."""
    found = world.side_files(origin) if origin is not None else None
    for name in filter(is_of_tokenizer, found.copied if found is not None else ()):
        if (content := side_file(origin, name, world)) is not None:
            yield name, content


def _nest(kind: OutputKind, tensors: Mapping[str, Expr], origin: str | None, world: World) -> Nest | None:
    """The nesting of the tensors, if the options ask for the containers of the input. Raises Refusal."""
    keep = kind.options.get("keep", [])
    if not (keep or kind.options.get("nested")):
        return None
    if kind.options.get("bare"):
        raise Refusal("output-options", "one tensor without a dict around it is not nested", key="options",
                      hint="Drop `bare`, or drop `nested` and `keep`.")  # fmt: skip
    nesting = None if origin is None else world.open(origin).header.nesting
    if nesting is None:
        found = "the tensors come from no checkpoint" if origin is None else f"{origin} has none"
        hint = "Files of torch and DCP have containers. Drop `nested` and `keep` to write the tensors by their names."
        raise Refusal("output-options", f"there are no containers to restore: {found}", key="options", hint=hint)
    try:
        kept = select_values(nesting, keep)
    except ValueError as bad:
        look = worded(shell=f"brainsurgery-jax inspect {origin} --json", python=f"bs.open({origin!r}).left_out")
        hint = f"Correct it, or drop it. `{look}` lists what there is."
        raise Refusal("output-options", f"option 'keep': {bad}", key="options", hint=hint) from bad
    try:
        return nest_of(nesting, tensors, kept)
    except ValueError as bad:
        hint = "Rename or delete the tensor; or drop `nested` and `keep`, to write tensors by their names."
        raise Refusal("output-options", f"cannot be nested: {bad}", key="options", hint=hint) from bad


def _check_storable(made: Publication) -> None:
    """Refuse tensors that the format cannot hold. Tensors of a failed step are not refused."""
    avals = {name: expr.aval for name, expr in made.tensors.items() if not expr.is_poison}
    options = WriteOptions(made.directory, made.metadata, made.shard_bytes, options=made.options, tree=made.tree)
    try:
        made.format.check(made.path, avals, options)
    except StoreError as bad:
        raise Refusal(
            "dtype-unsavable", _about(bad), key="path", hint=storing_hint(bad, made.tensors, made.alias)
        ) from bad


def _about(bad: StoreError) -> str:
    return bad.problem if bad.tensor is None else f"tensor '{bad.tensor}': {bad.problem}"


def _check_destination(kind: OutputKind, nbytes: int, overwrite: bool, world: World) -> Replacement | None:
    """The checkpoint that an output will replace. Raises Refusal if it cannot be written."""
    try:
        return world.check_destination(kind.path, nbytes, overwrite=overwrite, directory=kind.directory)
    except StoreError as bad:
        found = f"{bad.path}: {bad.problem}"
        raise Refusal(bad.code if bad.code else "io-output", found, key="path", hint=bad.remedy) from bad


def _kind(output: Output, default_shard: str) -> OutputKind:
    with _refusing("format"):
        format = None if output.format is None else find_format(output.format)
    with _refusing("shard"):
        shard_bytes = None if output.shard is None else parse_size(output.shard)
    with _refusing("path"):
        kind = output_kind(output.path, format, output.shard)
    with _refusing("options"):
        kind = kind._replace(shard_bytes=shard_bytes, options=read_options(kind.format, output.options))
    if output.shard is None and kind.directory and kind.format.shards:
        return kind._replace(shard_bytes=parse_size(default_shard))
    return kind


@contextmanager
def _refusing(key: str) -> Iterator[None]:
    """A context that turns a store's refusal into one of the output's key."""
    try:
        yield
    except ValueError as bad:
        raise _refusal(f"output-{key}", bad, key) from bad


def _refusal(code: str, bad: ValueError, key: str) -> Refusal:
    """A store's refusal of a path or a size: its first sentence is the message, the others are the hint."""
    message, *hint = re.split(r"\. (?=[A-Z])", str(bad), maxsplit=1)
    return Refusal(code, message, key=key, hint="".join(hint))


def _extras(space: Space, state: State) -> Extras:
    """The extras of an output: those of its alias, with the side files of the first input if the alias came from no
    checkpoint."""
    return space.extras.borrow(s.extras for s in state.spaces.values())


def alias_of(output: Output, state: State) -> str:
    """The alias to save: the named one, or the only one that steps wrote to, or the only one. Steps within `execute`
    count if no other step wrote to an alias."""
    filled = [a for a, s in state.spaces.items() if s.names or s.tainted or s.unknown]
    if output.alias is not None:
        if output.alias not in state.spaces:
            near = did_you_mean(output.alias, filled)
            hint = f"There are: {', '.join(filled)}." if filled else _WITHOUT_INPUT
            raise Refusal("alias-unknown", f"unknown alias '{output.alias}'.{near}", key="alias", hint=hint)
        return output.alias
    own, within = ([a for a in filled if a in wrote] for wrote in (state.written, state.written_within))
    written = own or within
    candidates = written or filled
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        hint = "The steps delete every tensor." if state.spaces else _WITHOUT_INPUT
        raise Refusal("output-empty", "no alias holds any tensor at the end of the plan", key="path", hint=hint)
    names = ", ".join(f"'{a}'" for a in candidates)
    why = "steps wrote to each of them" if written else "no step wrote to any of them"
    hint = f"Name one: `output: {{path: {output.path}, alias: {candidates[0]}}}`."
    raise Refusal("output-ambiguous", f"which alias should be written? {names}: {why}", key="path", hint=hint)
