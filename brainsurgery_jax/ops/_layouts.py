"""Layouts as ops: the tensors of an alias are matched with a layout, and its rules become expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, Num, np
from brainsurgery_jax.codes import describe_floats, find_codes
from brainsurgery_jax.documents import Text
from brainsurgery_jax.dtypes import FLOAT16, to_numpy
from brainsurgery_jax.errors import PlanError, Refusal, did_you_mean
from brainsurgery_jax.layout.actions import Shape
from brainsurgery_jax.layout.adapters import adapt, as_named, is_adapter, weights_of
from brainsurgery_jax.layout.bind import BoundLayout, Correspondence, bind
from brainsurgery_jax.layout.config import read_config
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.library import layout_for
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.moments import OPTIMIZER, WEIGHTS, MomentTree, moment_trees
from brainsurgery_jax.numerics.rounding import round_once
from brainsurgery_jax.op import Avals, Number, Params, kernel
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.ops.elementwise import scale
from brainsurgery_jax.ops.shape import concatenate, permute, reshape, section
from brainsurgery_jax.prefixes import Shift, shift_between
from brainsurgery_jax.protocol import Bind, Drop, Edit, Say, SetConfig, TensorExpr, View

SHOWN = 8
"""The most names of each kind that a refusal lists."""


def _floats(avals: Avals, params: Params) -> None:
    if not avals[0].dtype.is_float:
        raise Refusal("dtype-unsupported", f"this layout adds numbers to floating tensors, got {avals[0]}")


@kernel(elementwise=True, check=_floats, host=lambda avals, params: avals[0].dtype != FLOAT16)
def shift(x: Num[Array, "..."], *, number: Number) -> Array:
    """`x + number`, in at least float32 and rounded once."""
    return round_once("add", x, number.astype(np.float64 if x.dtype == np.float64 else np.float32))


class Exprs:
    """Expressions in the place of tensors: what the ops of a layout do becomes what the engine runs.

    `power` is 1 for weights. Of a gradient's moments it is what a factor on the weight does to them: if `w' = s w`,
    then `dL/dw' = (dL/dw) / s`, so that `mu` takes `s**-1` and `nu`, a mean of squares, `s**-2`; a sum leaves both.
    """

    def __init__(self, view: View, power: int = 1) -> None:
        self.view, self.power = view, power

    def permute(self, x: TensorExpr, order: tuple[int, ...]) -> TensorExpr:
        return x if order == tuple(range(len(order))) else self.view.apply(permute, x, order=order)

    def reshape(self, x: TensorExpr, shape: Shape) -> TensorExpr:
        return self.view.apply(reshape, x, shape=shape)

    def join(self, xs: Sequence[TensorExpr], axis: int) -> TensorExpr:
        return xs[0] if len(xs) == 1 else self.view.apply(concatenate, *xs, axis=axis)

    def cut(self, x: TensorExpr, axis: int, start: int, stop: int) -> TensorExpr:
        whole = stop - start == x.aval.shape[axis]
        return x if whole else self.view.apply(section, x, axis=axis, start=start, stop=stop)

    def extend(self, x: TensorExpr, axis: int, size: int) -> TensorExpr:
        shape = x.aval.shape
        if size == shape[axis]:
            return x
        zero = self.view.constant(np.zeros((1,) * len(shape), to_numpy(x.aval.dtype)), x.aval.dtype)
        rest = (*shape[:axis], size - shape[axis], *shape[axis + 1 :])
        return self.join([x, self.view.apply(broadcast, zero, shape=rest)], axis)

    def multiply(self, x: TensorExpr, by: float) -> TensorExpr:
        return x if by == 1 else self.view.apply(scale, x, by=by**self.power)

    def add(self, x: TensorExpr, number: float) -> TensorExpr:
        return x if number == 0 or self.power != 1 else self.view.apply(shift, x, number=number)


class Direction(NamedTuple):
    """Which way a layout is applied, whether moments are carried along, and which tied copies are made again."""

    inverse: bool
    moments: bool
    restore: Sequence[str]


def edits(
    view: View,
    name: str,
    config: Mapping[str, object] | str | None,
    options: Mapping[str, Value],
    alias: str | None,
    direction: Direction,
) -> Iterator[Edit]:
    """The edits of the op `layout`. Raises Refusal."""
    inverse, moments, restore = direction
    where = _alias(view, alias)
    found, content = _load(name, config)
    bound = _bind_layout(found, content, options, view, where, inverse=inverse)
    work = _Work(bound, view, where, inverse=inverse, moments=moments)
    work.check(restore)
    if not inverse and (lossy := bound.lossy()):
        lines = [f"{found.name} does not give every bit back:", *(f"  {rule.hf[0].text}: {why}" for rule, why in lossy)]
        yield Say(Text("\n".join(lines)))
    made = list(work.convert(restore))
    for old in work.names:
        yield Drop(where, old)
    for new, expr in made:
        yield Bind(where, new, expr)
    if not is_adapter(work.names):
        yield from _configs(view, where, found, content, inverse=inverse)


def _configs(
    view: View, alias: str, found: Layout, content: Mapping[str, object], *, inverse: bool
) -> Iterator[SetConfig]:
    """The config of what a layout made. Back to Hugging Face names it is that of the model, as `convert` writes it, if
    none lies beside the tree. Where a layout names every tensor they are floats, and it says nothing of codes."""
    known = view.config(alias)
    settings = known[1] if known is not None else content if inverse else {}
    if not isinstance(settings, Mapping) or not settings:
        return
    described = settings if found.rest else describe_floats(settings)
    if known is None or described != settings:
        yield SetConfig(alias, described)


def _alias(view: View, alias: str | None) -> str:
    known = view.aliases()
    chosen = alias or view.default_alias or (known[0] if len(known) == 1 else None)
    if chosen is None:
        names = ", ".join(f"'{a}'" for a in known)
        raise Refusal("layout-alias", f"which alias should be converted? There are {names or 'none'}", key="alias",
                      hint="Add `alias: NAME`.")  # fmt: skip
    return chosen


def _load(name: str, config: Mapping[str, object] | str | None) -> tuple[Layout, Mapping[str, object]]:
    """The layout, and the content of config.json."""
    content = read_config(config) if isinstance(config, str) else config
    try:
        found = layout_for(name, content)
    except PlanError as bad:
        raise _refusal(bad, f"the layout '{name}' cannot be used", "name") from bad
    if content is None and found.dims:
        hint = "Give its path, `config: model/config.json`, or its content as a mapping."
        raise Refusal("layout-config", f"'{found.name}' needs the config.json of the model", key="name", hint=hint)
    return found, content or {}


def _refusal(bad: PlanError, what: str, key: str) -> Refusal:
    """The diagnostics of a layout as one refusal of the step; several become a list."""
    first = bad.diagnostics[0]
    if len(bad.diagnostics) == 1:
        place = f" ({first.span})" if first.span else ""
        return Refusal(first.code, f"{first.message}{place}", key=key, hint=first.hint)
    return Refusal(first.code, f"{what}: {len(bad.diagnostics)} mistakes", key=key, hint=str(bad))


def _bind_layout(
    found: Layout, config: Mapping[str, object], options: Mapping[str, Value], view: View, alias: str, *, inverse: bool
) -> BoundLayout:
    names = view.names(alias)
    adapter = is_adapter(names)
    found = as_named(found, names, inverse=inverse)
    try:
        bound = bind(found, config, options, present=weights_of(names, found), inverse=inverse)
    except PlanError as bad:
        raise _refusal(bad, f"'{found.name}' does not fit this config.json", "name") from bad
    if not adapter or found.rest:
        return bound
    try:
        return adapt(bound, {n: view.fetch(alias, n).aval.shape for n in names}, inverse=inverse)
    except Refusal as bad:
        raise Refusal(bad.code, bad.message, key="name", hint=bad.hint) from bad


class _Work:
    """A bound layout, compared with the tensors of an alias."""

    def __init__(self, bound: BoundLayout, view: View, alias: str, *, inverse: bool, moments: bool) -> None:
        self.bound, self.view, self.alias, self.inverse = bound, view, alias, inverse
        self.names = list(view.names(alias))
        self.there = set(self.names)
        known = {n for pair in bound.pairs for n in (pair.target if inverse else pair.hf)}
        self.trees = [
            WEIGHTS,
            *(moment_trees(self.names, known, bound.layout.prefix if inverse else "") if moments else ()),
        ]
        self.kept = {n for n in self.names if moments and n.partition(".")[0] in OPTIMIZER} - self.shapes.keys()

    def names_of(self, pair: Correspondence, tree: MomentTree, *, target: bool) -> tuple[str, ...]:
        """The names of one side of a correspondence in a tree."""
        return tuple(
            tree.target(n, self._prefix) if target else tree.head + n for n in (pair.target if target else pair.hf)
        )

    def convert(self, restore: Sequence[str]) -> Iterator[tuple[str, TensorExpr]]:
        """The new names, each with its value."""
        copies = {t.original: t.copy for t in self.bound.ties if self.inverse and t.copy in restore}
        for tree in self.trees:
            on = Exprs(self.view, tree.power)
            for pair in self.bound.pairs:
                sources = [self.view.fetch(self.alias, n) for n in self.names_of(pair, tree, target=self.inverse)]
                results = pair.chain.inverse(sources, on) if self.inverse else pair.chain.forward(sources, on)
                for name, expr in zip(self.names_of(pair, tree, target=not self.inverse), results, strict=True):
                    yield name, expr
                    if name in copies:
                        yield copies[name], expr
        for name in self.names:
            if name in self.rest or name in self.kept:
                yield self._rename(name) if name in self.rest else name, self.view.fetch(self.alias, name)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape that every tensor of the rules must have."""
        return {
            n: shape
            for tree in self.trees
            for pair in self.bound.pairs
            for n, shape in zip(
                self.names_of(pair, tree, target=self.inverse),
                pair.target_shapes if self.inverse else pair.hf_shapes,
                strict=True,
            )
        }

    @cached_property
    def _buffers(self) -> frozenset[str]:
        """Tensors that may hold whole numbers."""
        pairs = [pair for pair in self.bound.pairs if pair.rule.integer]
        names = (self.names_of(p, tree, target=self.inverse) for tree in self.trees for p in pairs)
        return frozenset(n for group in names for n in group)

    @cached_property
    def rest(self) -> frozenset[str]:
        """The tensors that keep their names, in a layout that allows others."""
        if not self.bound.layout.rest:
            return frozenset()
        known = self.shapes.keys() | self.drops | self.kept
        return frozenset(n for n in self.there - known if not self.inverse or n.startswith(self._prefix))

    @property
    def _prefix(self) -> str:
        return f"{self.bound.layout.prefix}." if self.bound.layout.prefix else ""

    def _rename(self, name: str) -> str:
        return name.removeprefix(self._prefix) if self.inverse else self._prefix + name

    @cached_property
    def drops(self) -> frozenset[str]:
        """The tensors that may exist and are left out."""
        return self.bound.drops | frozenset(() if self.inverse else {t.copy for t in self.bound.ties})

    def check(self, restore: Sequence[str]) -> None:
        """Refuse all missing, unknown and misshapen tensors at once."""
        missing = [n for n in self.shapes if n not in self.there]
        unknown = sorted(self.there - self.shapes.keys() - self.drops - self.rest - self.kept)
        lines: list[str] = []
        if (shift := shift_between(unknown, missing)) is not None and len(unknown) > 1:
            lines = [_describe_shift(shift, len(unknown))]
            renamed = {shift.renamed(name) for name in unknown}
            unknown = [name for name in unknown if shift.renamed(name) not in set(missing)]
            missing = [name for name in missing if name not in renamed]
        lines += [*_list("missing", missing, self.there), *_list("not known to the layout", unknown, self.shapes)]
        lines += [*self._misshapen(), *self._quantized(unknown)]
        lines += [f"there is no tied '{n}' to restore" for n in restore if n not in {t.copy for t in self.bound.ties}]
        if lines:
            side = "target" if self.inverse else "Hugging Face"
            found = f"the {len(self.names)} tensors of '{self.alias}' are not those of the {side} side"
            raise Refusal("layout-tensors", f"{found} of {self.bound.layout.name}", key="name", hint="\n".join(lines))

    def _quantized(self, unknown: Sequence[str]) -> Iterator[str]:
        """What to do first, if unknown tensors are scales of quantized weights: layouts have floats."""
        scales = {codes.scales for n in self.names if (codes := find_codes(n, self.there.__contains__)) is not None}
        if count := sum(n in scales for n in unknown):
            step = f"`dequantize: {{target: '{self.alias}::.*', to: bfloat16}}`"
            yield f"{count} of them are scales of quantized weights: in a plan, {step} before this step"

    def _misshapen(self) -> list[str]:
        wrong = []
        for name, shape in self.shapes.items():
            if name not in self.there:
                continue
            aval = self.view.fetch(self.alias, name).aval
            if aval.shape != shape:
                wrong.append(f"'{name}' is {aval}, but config.json implies [{', '.join(map(str, shape))}]")
            elif not aval.dtype.is_float and name not in self._buffers:
                wrong.append(f"'{name}' is {aval}, and weights are floating")
        return _few(wrong)


def _describe_shift(shift: Shift, count: int) -> str:
    """A sentence on names with another prefix than in the layout, with the step that renames them."""
    drop = f"begin with '{shift.drop}'" if shift.drop else "lack a prefix"
    add = f"'{shift.add}' is expected" if shift.add else "none is expected"
    return f"{count} names {drop}, where {add}: in a plan, `{shift.step}` before this step"


def _list(what: str, names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Names under a heading, the first of them with what may have been meant."""
    if not names:
        return []
    near = did_you_mean(names[0], set(others))
    return [
        f"{what} ({len(names)}): '{names[0]}'{f' ({near.strip()})' if near else ''}",
        *_few([f"  '{n}'" for n in names[1:]]),
    ]


def _few(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[: SHOWN - 1], f"  and {len(lines) - SHOWN + 1} more"]
