"""A step `merge` at work: which tensors belong together, and what their method makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, cast

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import Refusal, refuse
from brainsurgery_jax.merging.corners import Corner, common_shape
from brainsurgery_jax.merging.differences import Config, config_of, note_settings, note_words
from brainsurgery_jax.merging.method import MergeMethod, Merging, ModelTensor
from brainsurgery_jax.merging.settings import Given, Settings, depths_of
from brainsurgery_jax.merging.stacks import Layers, Unclear, find_layers, refuse_unclear, take_layers
from brainsurgery_jax.merging.table import METHODS
from brainsurgery_jax.merging.tensors import in_dtype
from brainsurgery_jax.ops._quantization import refuse_quantized
from brainsurgery_jax.ops.sets import entry
from brainsurgery_jax.ops.shape import concatenate, with_shape
from brainsurgery_jax.protocol import AddAlias, Bind, Edit, TensorExpr, View
from brainsurgery_jax.select import Ref, compile_pattern
from brainsurgery_jax.wording import few, quoted

_FACTOR = re.compile(r"[._]lora_(?:A|B|down|up|embedding_A|embedding_B)(?:\.|$)")
"""Names of the factors of an adapter, as PEFT, diffusers and kohya write them."""

WHOLE_NAME = "\\g<0>"


class TensorRow(NamedTuple):
    """The tensors of one name, by alias."""

    name: str
    exprs: Mapping[str, TensorExpr]

    @property
    def is_float(self) -> bool:
        """Whether all of them are floats with elements."""
        avals = [e.aval for e in self.exprs.values()]
        return all(a.dtype.is_float and a.size for a in avals)


class MergePart(NamedTuple):
    """A tensor to be merged, and the corner of it that is: as a whole, or (`axis`) layer by layer."""

    mergings: tuple[Merging, ...]
    corner: Corner
    axis: int | None = None


class ByLayer(NamedTuple):
    """The axis along which a tensor is merged layer by layer, and the depth of each, None where no list asks for it."""

    axis: int
    depths: Sequence[float] | None


@dataclass(frozen=True)
class MergeStep:
    """What a step says."""

    view: View
    method: MergeMethod
    models: Mapping[str, Mapping[str, object]]
    to: str
    base: str | None = None
    parameters: Mapping[str, object] | None = None
    of: Ref | None = None
    dtype: DType | None = None
    on_mismatch: str = "error"
    compat: bool = False
    layer_axis: int | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    """Where models come from, of those that the step names as inputs are written."""

    def edits(self) -> Iterator[Edit]:
        """What the step does. Raises Refusal."""
        refuse(self._mistakes())
        fresh = self.to not in self.view.aliases()
        if fresh:
            yield AddAlias(self.to, like=self.primary)
        rows = self._rows()
        self._refuse_codes(rows)
        self._refuse_mismatch(rows)
        layers = self._find_layers(rows)
        settings, parts = self._settings(rows, layers), dict[str, MergePart]()
        self._tell_idle(settings, rows)
        cuts, group = self._cuts(rows, settings, layers), list[Merging]()
        for row in rows:
            if row.is_float and (part := self._part(row, settings, group, cuts.get(row.name))) is not None:
                parts[row.name] = part
                group.extend(part.mergings)
        self._tell_kept([row for row in rows if not row.is_float])
        self._tell_dtypes([row for row in rows if row.name in parts])
        self._tell_factors(list(parts))
        self._tell_differences(self.primary if fresh else self.to, [row for row in rows if row.name in parts])
        made = [(row.name, self._result(row, parts.get(row.name))) for row in rows]
        for name, expr in made:
            yield Bind(self.to, name, expr, "new" if fresh else "rebind")

    # --- what the step says

    @cached_property
    def aliases(self) -> tuple[str, ...]:
        """The models that are merged, in their order, the base left out."""
        others = tuple(alias for alias in self.models if alias != self.base)
        return (self.base, *others) if self.method.first and self.base is not None else others

    @property
    def start(self) -> str | None:
        """The base, where it is no model like others."""
        return None if self.method.first else self.base

    @property
    def primary(self) -> str:
        """The alias whose names and dtypes the result has."""
        return self.start or self.aliases[0]

    def _mistakes(self) -> Iterator[Refusal]:
        """What does not go with the method."""
        method, count = self.method, len(self.aliases)
        if method.base == "needed" and self.base is None:
            yield Refusal("merge-models", f"{method.name} merges what models differ by from a base, and none is given",
                          key="method", hint="Add `base: ALIAS`, the model that the others were made of.")  # fmt: skip
        elif method.base == "none" and self.base is not None:
            yield Refusal("merge-models", f"{method.name} has no base", key="base",
                          hint="Leave `base` out. To merge that model as well, name it under `models`.")  # fmt: skip
        elif not method.fewest <= count <= method.most:
            exact, high = method.fewest == method.most, count > method.most
            wanted = f"{method.fewest}" if exact else f"at most {method.most}" if high else f"at least {method.fewest}"
            besides = " besides the base" if self.start else ""
            message = f"{method.name} takes {wanted} model{'s' * (wanted[-1] != '1')}{besides}, got {count}"
            yield Refusal("merge-models", message, key="models", hint="Name as many under `models`.")
        if self.dtype is not None and not self.dtype.is_float:
            yield Refusal("merge-parameter", f"results are floats, and {self.dtype} is none", key="dtype",
                          hint="Name a float dtype, and `cast_` the result afterwards.")  # fmt: skip
        if self.parameters is None and self.view.has_key("parameters"):
            hint = f"Leave it out, or give any of these: {', '.join(method.parameters) or 'none'}."
            yield Refusal("merge-parameter", "'parameters' has no value", key="parameters", hint=hint)
        yield from self._plain_settings.mistakes()
        yield from self._wrong_aliases()

    def _wrong_aliases(self) -> Iterator[Refusal]:
        """Models that are not there, or come from another checkpoint than the step says."""
        for alias in (*self.models, *([self.base] if self.base else [])):
            key = "models" if alias in self.models else "base"
            try:
                self.view.names(alias, key)
            except Refusal as bad:
                yield bad
                continue
            path, origin = self.paths.get(alias, ""), self.view.origin(alias)
            if path and origin and _last_part(path) != _last_part(origin):
                yield Refusal("merge-models", f"'{alias}' comes from {origin}, not from '{path}'", key=key,
                              hint="Write the alias alone; `of` is the pattern of names that are merged.")  # fmt: skip

    @property
    def _plain_settings(self) -> Settings:
        """What the step says of parameters, without what the names of tensors say of layers."""
        general = cast("Mapping[str, Given]", self.parameters or {})
        own = cast("Mapping[str, Mapping[str, Given]]", self.models)
        return Settings(self.method.name, self.method.parameters, general, own)

    def _settings(self, rows: Sequence[TensorRow], layers: Layers) -> Settings:
        """What the step says of parameters, and where each tensor lies in its model."""
        single = [row.name for row in rows if row.name not in layers.stacks]
        depths = depths_of(single) | {name: layers.depths[name] for name in single if name in layers.depths}
        layered = layers.has_layers(self.view.names(self.primary))
        return replace(self._plain_settings, depths=depths, has_layers=layered)

    # --- tensors

    def _rows(self) -> list[TensorRow]:
        """The tensors of the step, by name."""
        name, kind = (".*", None) if self.of is None else (self.of.name, self.of.kind)
        partners = [alias for alias in self.aliases if alias != self.primary]
        same = WHOLE_NAME if isinstance(name, str) else name
        targets = {alias: Ref(alias, same, None, kind) for alias in partners}
        targets[""] = Ref(self.to, same)  # the key of the result must be none of an alias
        try:
            found = self.view.rename(Ref(self.primary, name, None, kind), targets, read=partners)
        except Refusal as bad:
            raise bad if bad.key not in partners else Refusal(bad.code, str(bad), key="models", hint=bad.hint) from None
        return [TensorRow(name, self._fetch(name, (self.primary, *partners))) for name, _ in found]

    def _fetch(self, name: str, aliases: Sequence[str]) -> dict[str, TensorExpr]:
        return {alias: self.view.fetch(alias, name, "models") for alias in aliases}

    def _config(self) -> Config:
        """The config of the model whose names the result has."""
        return config_of(self.view, self.primary)

    # --- layers

    def _find_layers(self, rows: Sequence[TensorRow]) -> Layers:
        """Which tensors hold all layers: of all those of the model, also where only some are merged. Raises Refusal."""
        if self.layer_axis is None and self.method.by_element and not self._plain_settings.has_lists():
            return Layers()  # an element depends on no others
        avals = {name: self.view.aval(self.primary, name) for name in self.view.names(self.primary)}
        shapes = {name: aval.shape for name, aval in avals.items() if aval.dtype.is_float}
        if self.layer_axis is None:
            return find_layers(shapes, self._config)
        merged = [row.name for row in rows if row.is_float]
        return take_layers(shapes, self._config, self.layer_axis, merged, named=self.of is not None)

    def _cuts(self, rows: Sequence[TensorRow], settings: Settings, layers: Layers) -> Mapping[str, ByLayer]:
        """Which tensors are merged layer by layer. Raises Refusal."""
        names, found = [row.name for row in rows if row.is_float], dict[str, ByLayer]()
        apart = self.layer_axis is not None or not self.method.by_element
        for name in names:
            listed = (name in layers.stacks or name in layers.unclear) and settings.is_by_layer(name)
            if listed and name in layers.unclear:
                raise refuse_unclear(layers.unclear[name])
            if name in layers.stacks and (listed or apart):
                depths = layers.depths_of_layers(name) if listed else None
                found[name] = ByLayer(layers.stacks[name].axis, depths)
        self._tell_guesses({layers.stacks[name].head for name in found}, layers)
        if apart:
            self._tell_unclear([layers.unclear[name] for name in names if name in layers.unclear])
        return found

    def _tell_guesses(self, heads: set[str], layers: Layers) -> None:
        """Say which tensors are taken apart because of their shapes alone."""
        for head in sorted(heads & layers.guessed.keys()):
            axis, count = layers.guessed[head]
            message = f"no config says how many layers there are: by shapes '{head}' holds {count}, along axis {axis}"
            self.view.note("merge-parameter", message, "method", f"If so, say `layer_axis: {axis}`.")

    def _tell_unclear(self, unclear: Iterable[Unclear]) -> None:
        """Say which tensors are merged as one although they may hold all layers."""
        for each in {each.head: each for each in unclear}.values():
            if each.axes:
                message = f"the tensors of '{each.head}' may hold all layers, and {self.method.name} merges each as one"
                words = " or ".join(f"`layer_axis: {axis}`" for axis in each.axes)
                self.view.note("merge-parameter", f"{message} tensor", "method",
                               f"To merge them layer by layer say {words}.")  # fmt: skip

    def _part(
        self, row: TensorRow, settings: Settings, group: Sequence[Merging], cut: ByLayer | None
    ) -> MergePart | None:  # fmt: skip
        """A row as its method sees it, or its layers along an axis; None where too few models are left."""
        own = row.exprs[self.primary].aval
        chosen = dict(row.exprs)
        if any(e.aval.shape != own.shape for e in chosen.values()):
            chosen = self._settle_mismatch(row)
        models = [alias for alias in self.aliases if alias in chosen]
        if len(models) < self.method.fewest:
            return None
        around = None if self.start is None else chosen[self.start]
        corner = Corner(self.view, common_shape([e.aval.shape for e in chosen.values()]), around)
        base = None if self.start is None else ModelTensor(self.start, corner.cut(chosen[self.start]))
        tensors = tuple(ModelTensor(alias, corner.cut(chosen[alias])) for alias in models)
        dtype = self.dtype or own.dtype
        whole = Merging(self.view, row.name, base, tensors, settings, dtype, self.compat, group)
        if cut is None:
            return MergePart((whole,), corner)
        return MergePart(tuple(self._layers(whole, cut)), corner, cut.axis)

    def _layers(self, whole: Merging, by: ByLayer) -> Iterator[Merging]:
        """The layers of a tensor that holds all of them, each at its depth."""
        shape = whole.aval.shape
        axis, count = by.axis % len(shape), shape[by.axis]

        def cut(tensor: ModelTensor, at: int) -> ModelTensor:
            return tensor._replace(expr=self.view.apply(entry, tensor.expr, axis=axis, at=at))

        for at in range(count):
            base = None if whole.base is None else cut(whole.base, at)
            settings = whole.settings if by.depths is None else whole.settings.at_depth(whole.name, by.depths[at])
            models = tuple(cut(m, at) for m in whole.models)
            yield replace(whole, base=base, models=models, settings=settings, layer=(axis, at))

    def _join_layers(self, layers: Sequence[TensorExpr], axis: int) -> TensorExpr:
        """Layers as one tensor."""
        shape = layers[0].aval.shape
        place = axis % (len(shape) + 1)
        wide = [self.view.apply(with_shape, e, shape=(*shape[:place], 1, *shape[place:])) for e in layers]
        return wide[0] if len(wide) == 1 else self.view.apply(concatenate, *wide, axis=place)

    def _settle_mismatch(self, row: TensorRow) -> dict[str, TensorExpr]:
        """The tensors of a row that are merged although shapes differ."""
        if self.on_mismatch == "common":
            return dict(row.exprs)
        own = row.exprs[self.primary].aval
        return {alias: e for alias, e in row.exprs.items() if e.aval.shape == own.shape}

    @property
    def _is_alone(self) -> bool:
        """Whether the step has one model, and no base that it differs from."""
        return len(self.aliases) == 1 and self.start is None

    def _refuse_codes(self, rows: Sequence[TensorRow]) -> None:
        """Refuse quantized weights. Integer codes would be taken over from one model, beside the scales of all."""
        if not self._is_alone and rows:
            names = [row.name for row in rows]
            refuse_quantized(self.view, dict.fromkeys(rows[0].exprs, names), "models", "only floats are merged")

    def _refuse_mismatch(self, rows: Sequence[TensorRow]) -> None:
        """Refuse tensors whose shapes differ, if the step does not say what becomes of them."""
        differing = [row for row in rows if row.is_float and len({e.aval.shape for e in row.exprs.values()}) > 1]
        ranks_too = [row for row in differing if len({len(e.aval.shape) for e in row.exprs.values()}) > 1]
        refused = {"error": differing, "skip": [], "common": ranks_too}[self.on_mismatch]
        if not refused:
            return
        row, count = refused[0], len(refused) - 1
        own = row.exprs[self.primary].aval
        alias, other = next((a, e.aval) for a, e in row.exprs.items() if e.aval.shape != own.shape)
        more = "" if not count else f", and {count} more tensor{'s differ' if count > 1 else ' differs'}"
        message = f"'{row.name}' is {own} in '{self.primary}' and {other} in '{alias}'{more}"
        hint = "`on_mismatch: skip` leaves out models whose shape is another, tensor by tensor."
        if not ranks_too:
            hint = f"{hint} `on_mismatch: common` merges the first entries along each axis, which all have."
        raise Refusal("shapes-differ", message, key="models", hint=hint)

    def _result(self, row: TensorRow, part: MergePart | None) -> TensorExpr:
        """What becomes of a row. Raises Refusal."""
        if part is None:
            kept = row.exprs[self.primary]
            wanted = self.dtype if kept.aval.dtype.is_float else None
            return kept if wanted in (None, kept.aval.dtype) else self.view.apply(in_dtype, kept, dtype=wanted)
        try:
            merged = [self.method.merge(merging) for merging in part.mergings]
        except Refusal as bad:
            raise bad.about("" if row.name in bad.message else f" ('{row.name}')") from bad
        return part.corner.restore(merged[0] if part.axis is None else self._join_layers(merged, part.axis))

    def _tell_idle(self, settings: Settings, rows: Sequence[TensorRow]) -> None:
        """Say which patterns of parameters match no tensor that is merged."""
        names = [row.name for row in rows if row.is_float]
        for pattern, key in dict.fromkeys(settings.patterns()):
            if all(compile_pattern(pattern).match(name) is None for name in names):
                hint = f"Names that are merged: {few(names)}." if names else ""
                self.view.note("merge-parameter", f"pattern '{pattern}' matches no tensor that is merged", key, hint)

    def _tell_kept(self, rows: Sequence[TensorRow]) -> None:
        """Say which tensors are taken over that are no floats."""
        if self._is_alone or not rows:
            return
        number = f"{len(rows)} tensors are" if len(rows) > 1 else f"'{rows[0].name}' is"
        message = f"{number} taken over from '{self.primary}': only floats with elements are merged"
        others = ((row.name, alias) for row in rows for alias, e in row.exprs.items()
                  if alias != self.primary and e.aval == row.exprs[self.primary].aval)  # fmt: skip
        name, alias = next(others, ("", ""))
        step = f"assign: {{from: {quoted(f'{alias}::{re.escape(name)}')}, to: {quoted(f'{self.to}::{name}')}}}"
        hint = f"To take one from another model, add a step after this one: `{step}`." if name else ""
        self.view.note("merge-kept", message, "models", hint)

    def _tell_dtypes(self, rows: Sequence[TensorRow]) -> None:
        """Say which dtype results have where models differ in theirs."""
        mixed = [row for row in rows if len({e.aval.dtype for e in row.exprs.values()}) > 1]
        if self.dtype is None and mixed:
            row = mixed[0]
            found = ", ".join(f"{e.aval.dtype} in '{alias}'" for alias, e in row.exprs.items())
            more = f", and so {len(mixed) - 1} more differ" if len(mixed) > 1 else ""
            message = f"'{row.name}' is {found}{more}: results have the dtype of '{self.primary}'"
            self.view.note("merge-dtype", message, "models", f"Give `dtype: {row.exprs[self.primary].aval.dtype}`, or "
                           "another one.")  # fmt: skip

    def _tell_factors(self, merged: Sequence[str]) -> None:
        """Say that the product of merged factors is not what the products make, and that scales are left out."""
        factors = [f"'{name}'" for name in merged if _FACTOR.search(name)]
        if factors and len({*self.aliases, self.primary}) > 1:
            message = (
                f"{few(factors, 2)} are factors of adapters, each merged by itself: their product is no merge of the "
                "products, and by how much each adapter counts is left out"
            )
            weights = ", ".join(f"{alias}: WEIGHT" for alias in self.aliases)
            hint = f"To add what adapters do to a model, write `lora_merge: {{base: MODEL, adapters: {{{weights}}}}}`."
            self.view.note("merge-factors", message, "models", hint)

    def _tell_differences(self, holder: str, rows: Sequence[TensorRow]) -> None:
        """Say what models differ in beside the alias whose config and tokenizer the result has."""
        models = [alias for alias in dict.fromkeys((self.primary, *self.aliases)) if alias != holder]
        note_settings(self.view, holder, models)
        note_words(self.view, holder, models, {row.name: row.exprs[self.primary].aval.shape for row in rows})


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def find_method(name: str) -> MergeMethod:
    """The method of a name that is known."""
    return METHODS[name]
