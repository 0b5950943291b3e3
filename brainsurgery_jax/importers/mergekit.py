"""Convert a mergekit configuration to a plan with the same result.

Most methods become one step `merge`.

Linear combinations become `compute` steps, which take all models at once, compute in float32 and round once (mergekit
also rounds the task vectors). Stacked layers become `copy` steps that renumber. Parameters that differ by layer or by
name become one step for each value, over its names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from brainsurgery_jax.dtypes import BY_NAME
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.importers.config_reader import FORM
from brainsurgery_jax.importers.imported import Imported, StepComment
from brainsurgery_jax.importers.merge_chat import set_chat
from brainsurgery_jax.importers.merge_mixes import Mix, mix_of
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.merge_parts import MergeParts, SlicePart, refuse_no_weight
from brainsurgery_jax.importers.merge_slices import SliceMerges
from brainsurgery_jax.importers.merge_steps import StepParts
from brainsurgery_jax.importers.merge_words import share_words
from brainsurgery_jax.importers.mergekit_commands import import_extraction, is_extraction
from brainsurgery_jax.importers.mergekit_config import (
    BY_EXPRESSION,
    NEEDS_BASE,
    Config,
    MergeSlice,
    MergeSource,
    read_config,
    read_root,
)
from brainsurgery_jax.importers.mergekit_moe import import_moe, is_moe
from brainsurgery_jax.importers.mergekit_parameters import ParameterValue
from brainsurgery_jax.importers.patterns import selections, shift_name
from brainsurgery_jax.merging.settings import depth_of
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.version import __version__

_MERGED = "merged"


def plan_of(path: str) -> str:
    """The plan, as YAML with comments. See `import_plan`."""
    return import_plan(path).text()


def import_plan(path: str) -> Imported:
    """The plan of a configuration, or of mergekit-extract-lora. Raises PlanError for what plans cannot
    express, StoreError for unreadable models."""
    if is_extraction(path):
        return import_extraction(path)
    root = read_root(path)
    if is_moe(root):
        return import_moe(root, path)
    config = read_config(path, root)
    problems = []
    models: dict[str, Model] = {}
    for (model, span), alias in zip(config.models.items(), _aliases(config), strict=False):
        try:
            models[model] = Model.find(model, alias, span)
        except PlanError as error:
            problems += error.diagnostics
    if problems:
        raise PlanError(problems)
    made = _Writer(config, models).write()
    made.check()
    return made


def _aliases(config: Config) -> Iterator[str]:
    if config.base is not None and config.method in NEEDS_BASE:
        yield "base"
    yield from (chr(ord("a") + i) if i < 26 else f"m{i}" for i in range(len(config.models)))


@dataclass(frozen=True)
class _Writer:
    """Writes the plan of one configuration."""

    config: Config
    models: Mapping[str, Model]

    @cached_property
    def parts(self) -> MergeParts:
        """What is merged alike."""
        return MergeParts(self.config, self.models)

    def write(self) -> Imported:
        words = share_words(self.config, self.models)
        chat = set_chat(self.config, self.models, self.alias)
        steps = (*self.steps(words.steps), *chat.steps)
        head = f"From {self.config.file} (mergekit, {self.config.method}), by brainsurgery-jax {__version__}."
        notes = (head, *dict.fromkeys((*words.notes, *chat.notes, *self.config.notes)))
        inputs = (*(each for model in self.models.values() for each in model.inputs), *words.inputs)
        return Imported(self.config.file, notes, inputs, steps, self.output())

    @property
    def alias(self) -> str:
        return self.parts.first.alias if self.parts.whole and self.by_expression else _MERGED

    @property
    def by_expression(self) -> bool:
        """Whether the method is a linear combination."""
        return self.config.method in BY_EXPRESSION

    @cached_property
    def working(self) -> str | None:
        """The dtype of the computation, if it is unique and known; the wider one if the models differ."""
        if self.config.dtype is not None:
            return self.config.dtype
        models = [model for model in self.models.values() if model.dtypes is not None]
        kinds = frozenset().union(*(model.kinds for model in models))
        if len(kinds) <= 1:
            return next(iter(kinds), None)
        if all(len(model.kinds) == 1 for model in models) and self.config.method != "passthrough":
            return "float64" if "float64" in kinds else "float32"
        if any(model.dtypes != models[0].dtypes for model in models):
            message = f"the models mix different dtypes ({', '.join(sorted(kinds))})"
            raise refuse(message, None, "Add `dtype: float32`, or another, to the configuration.", FORM)
        return None

    @property
    def dtype(self) -> str | None:
        """The dtype of the result, if it is unique and known."""
        return self.config.out_dtype or self.working

    def output(self) -> Mapping[str, object]:
        patch = dict(self.patch())
        return {"path": "merged/", "alias": self.alias} | ({"config": patch} if patch else {})

    def patch(self) -> Iterator[tuple[str, object]]:
        """The changes to the first model's config.json for the result."""
        config = self.parts.first.config
        yield from ((key, value) for key, value in self.stacked_values() if config.get(key) != value)
        key = "dtype" if "dtype" in config else "torch_dtype"
        if self.dtype is not None and config and config.get(key) != self.dtype:
            yield key, self.dtype

    def stacked_values(self) -> Iterator[tuple[str, object]]:
        """The values in config.json that depend on the stacked layers."""
        config = self.parts.first.config
        if not self.parts.whole:
            sources = [piece.sources[0] for piece in self.config.slices]
            if (key := self.parts.first.count_key) is None:
                message = f"the config.json of '{self.parts.first.path}' does not contain the number of layers"
                raise refuse(message, self.parts.first.span, "Add it, as `num_hidden_layers` or `n_layer`.")
            yield key, sum(len(self.parts.layers(source)) for source in sources)
            for name, value in config.items():
                if isinstance(value, list) and len(value) == self.parts.first.stack.size:
                    lists = [(self.list_of(s, name) or value, self.parts.layers(s)) for s in sources]
                    yield name, [items[at] for items, layers in lists for at in layers]

    def list_of(self, source: MergeSource, key: str) -> list[object]:
        """A list in a source's config.json; empty if there is none."""
        value = self.models[source.model].config.get(key)
        return value if isinstance(value, list) else []

    def steps(self, words: Iterable[Substep]) -> Iterator[Substep | StepComment]:
        for model in self.models.values():
            yield from model.preparations
            if not self.parts.whole:
                model.refuse_new_head()
        yield from words
        if not self.by_expression:
            if self.parts.whole:
                (whole,) = self.parts.pieces()
                refuse_no_weight(self.config, whole)
                yield Substep("merge", StepParts(self.config, self.models, whole.slice).payload(_MERGED))
            else:
                yield from SliceMerges(self.config, self.models, _MERGED).steps(self.parts.pieces())
            return
        for model in self.models.values():
            if self.working is not None and not self.rounds_later(model):
                yield Substep("cast_", {"target": f"{model.alias}::.*", "to": self.working})
        if not self.parts.whole:
            yield Substep("prefixes", {"mode": "add", "alias": _MERGED})
        if self.in_parts:
            yield from self.names_agree()
        for piece, groups in self.groups:
            yield from self.comment(piece)
            for mix, names in groups:
                yield from self.mix_steps(piece, mix, names)
        if (dtype := self.last_cast()) is not None:
            yield Substep("cast_", {"target": f"{self.alias}::.*", "to": dtype})

    @cached_property
    def in_parts(self) -> bool:
        """Whether several steps merge whole models, each step a part of the tensors."""
        return self.parts.whole and sum(len(groups) for _, groups in self.groups) > 1

    def names_agree(self) -> Iterator[Substep]:
        """Asserts that the merged models have the same tensors."""
        used = {source.model for _, groups in self.groups for mix, _ in groups for source in mix.sources}
        for name, model in self.models.items():
            if name in used and model is not self.parts.first:
                yield Substep("assert", {"same_names": {"left": self.parts.first.alias, "right": model.alias}})

    def comment(self, piece: SlicePart) -> Iterator[StepComment]:
        """A comment with the layers of a piece, where layers are stacked."""
        if self.parts.whole or piece.start is None:
            return
        layers = [(self.parts.of(source).alias, self.parts.layers(source)) for source in piece.slice.sources]
        sources = ", ".join(f"{alias} {_span(at)}" for alias, at in layers)
        yield StepComment(f"layers {_span(range(piece.start, piece.start + len(layers[0][1])))}: {sources}")

    def last_cast(self) -> str | None:
        """The dtype of the final cast; None if none is needed."""
        out = self.config.out_dtype or (self.config.dtype if self.copies else None)
        before = None if self.copies else self.working
        has = {before} if before is not None else set().union(*(m.kinds for m in self.models.values()))
        return None if has == {out} else out

    @property
    def copies(self) -> bool:
        """Whether nothing is computed, so that one cast at the end is enough."""
        return self.config.method == "passthrough" and not any(True for p in self.config.slices for _ in self.scales(p))

    def scales(self, piece: MergeSlice) -> Iterator[object]:
        yield from (p for p in (self.config, piece, *piece.sources) if "scale" in p.parameters)

    def rounds_later(self, model: Model) -> bool:
        """Whether the model needs no cast at the start, because its results are cast later."""
        if model.kinds == {self.working} or self.copies:
            return True
        small = all(BY_NAME[kind].is_float and BY_NAME[kind].bits <= 32 for kind in model.kinds)
        computed = all(mix.by is None for _, groups in self.groups for mix, _ in groups)
        return computed and self.working == "float32" and small and bool(model.kinds)

    def depth(self, piece: SlicePart, name: str) -> float:
        """The relative depth of a tensor's layer in the slice (or whole model), from 0 to 1; 0 outside of layers."""
        source = piece.slice.sources[0]
        if not name or (self.parts.whole and not self.spread(piece)):
            return 0.0
        if (place := self.parts.stack(source).place(name)) is None:
            return 0.0
        layers = self.parts.layers(source) if self.config.sliced else range(self.parts.stack(source).size)
        return depth_of(place[0] - layers.start, len(layers))

    def spread(self, piece: SlicePart) -> bool:
        """Whether any parameter differs by layer."""
        return any(len(condition.values) > 1 for condition in self.conditions(piece))

    def conditions(self, piece: SlicePart) -> Iterator[ParameterValue]:
        levels = (self.config.parameters, piece.slice.parameters, *(s.parameters for s in piece.slice.sources))
        yield from (condition for level in levels for setting in level.values() for condition in setting)

    def filters(self, piece: SlicePart) -> list[str]:
        return list(dict.fromkeys(c.filter for c in self.conditions(piece) if c.filter is not None))

    @cached_property
    def groups(self) -> list[tuple[SlicePart, list[tuple[Mix, list[str]]]]]:
        """The tensors of each piece, grouped by their mix."""
        return [(piece, list(self.mixes(piece))) for piece in self.parts.pieces()]

    def mixes(self, piece: SlicePart) -> Iterator[tuple[Mix, list[str]]]:
        if not piece.names and (self.filters(piece) or self.spread(piece)):
            assert self.models[piece.slice.sources[0].model].names, "a missing model is refused"
        groups: dict[tuple[str, float | None], tuple[Mix, list[str]]] = {}
        for name in piece.names or ("",):
            mix = mix_of(self.config, self.models, piece.slice, name, self.depth(piece, name))
            groups.setdefault((mix.expr, mix.by), (mix, []))[1].append(name)
        yield from groups.values()

    def mix_steps(self, piece: SlicePart, mix: Mix, names: Iterable[str]) -> Iterator[Substep]:
        """The steps for the tensors of one mix. The model that is changed in place comes first, if it is a source."""
        mix = mix._replace(sources=tuple(sorted(mix.sources, key=lambda s: self.parts.of(s).alias != self.alias)))
        if mix.by == 1 and self.parts.of(mix.sources[0]).alias == self.alias:
            return
        shifts = [self.parts.shift(piece, source) for source in mix.sources]
        out = None if piece.start is None else piece.start - self.parts.layers(mix.sources[0]).start
        for pattern in self.patterns(piece, mix, names, renumber=any((*shifts, out))):
            refs = [f"{self.parts.of(mix.sources[0]).alias}::{pattern}"]
            for source, shift in zip(mix.sources[1:], shifts[1:], strict=True):
                model = self.parts.of(source)
                refs.append(f"{model.alias}::{model.template(pattern, shift - shifts[0])}")
            yield self.step(mix, refs, f"{self.alias}::{self.parts.of(mix.sources[0]).template(pattern, out or 0)}")

    def patterns(self, piece: SlicePart, mix: Mix, names: Iterable[str], *, renumber: bool) -> Iterator[str]:
        leader = self.parts.of(mix.sources[0])
        if leader.dtypes is None or not piece.names:
            yield ".*"
            return
        stack = leader.stack if piece.start is not None or self.spread(piece) else None
        by = self.parts.shift(piece, mix.sources[0])
        own = [shift_name(name, self.parts.stack(piece.slice.sources[0]), by) for name in names]
        yield from selections(own, leader.names, stack, self.filters(piece), renumber=renumber)

    def step(self, mix: Mix, refs: list[str], to: str) -> Substep:
        """One step: a copy or multiple of one model, or an expression over several."""
        source, *others = refs
        own = self.parts.of(mix.sources[0]).alias == self.alias
        if mix.by is not None and own:
            return Substep("scale_", {"target": source, "by": mix.by})
        if mix.by == 1:
            return Substep("assign" if self.parts.whole else "copy", {"from": source, "to": to})
        if mix.by is not None and not self.parts.whole:
            return Substep("scale", {"from": source, "to": to, "by": mix.by})
        expr = mix.expr if mix.by is None else f"{mix.by!r}*{mix.expr}"
        operands = {self.parts.of(s).alias: ref for s, ref in zip(mix.sources, [source, *others], strict=True)}
        payload = {"from": operands, "expr": expr} | ({} if own else {"to": to})
        payload |= {"unmatched": "error"} if others and not self.in_parts else {}
        dtype, kinds = self.working, self.parts.of(mix.sources[0]).kinds
        return Substep("compute", payload | ({"dtype": dtype} if dtype and kinds != {dtype} and kinds else {}))


def _span(layers: range) -> str:
    return f"{layers.start} to {layers.stop - 1}" if len(layers) > 1 else str(layers.start)
