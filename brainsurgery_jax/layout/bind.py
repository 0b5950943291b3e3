"""A layout and a config made concrete: which tensors correspond, in which shapes, and the ops between them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, did_you_mean, worded
from brainsurgery_jax.layout.actions import Chain, Shape, Shapes
from brainsurgery_jax.layout.config import Dims
from brainsurgery_jax.layout.expressions import Config, SizeExpression, Value
from brainsurgery_jax.layout.families import LIST, Axis, BoundOp, OpContext, TensorFamily
from brainsurgery_jax.layout.model import NESTED, TREE, DropRule, Layout, LayoutRule, OpUse, RuleCondition, TieRule
from brainsurgery_jax.layout.moments import OPTIMIZER
from brainsurgery_jax.layout.ops import OPS
from brainsurgery_jax.layout.templates import NameTemplate


@dataclass(frozen=True, slots=True)
class Correspondence:
    """Tensors of one side, the tensors of the other side that they correspond to, and the chain of ops between them."""

    hf: tuple[str, ...]
    target: tuple[str, ...]
    chain: Chain
    hf_shapes: tuple[Shape, ...]
    target_shapes: tuple[Shape, ...]
    rule: LayoutRule
    axes: tuple[Axis, ...] = ()  # of the family on the Hugging Face side, whose members are in row-major order


class TiedPair(NamedTuple):
    """A copy that a checkpoint may hold, and the tensor that it repeats, by their Hugging Face names."""

    copy: str
    original: str


@dataclass(frozen=True, slots=True)
class BoundLayout:
    """A layout for one config. Names on the target side include its prefix. `drops`: names on the side that is read."""

    layout: Layout
    options: Mapping[str, Value]
    dims: Dims
    pairs: tuple[Correspondence, ...]
    drops: frozenset[str]
    ties: tuple[TiedPair, ...]

    def lossy(self) -> tuple[tuple[LayoutRule, str], ...]:
        """The rules in force whose inverse does not restore every bit, and why."""
        lossy: dict[LayoutRule, str] = {}
        for rule in dict.fromkeys(p.rule for p in self.pairs):
            reasons = [r for use in rule.ops if (r := OPS[use.name].loses(use.args, self.dims))]
            if reasons:
                lossy[rule] = "; ".join(dict.fromkeys(reasons))
        return tuple(lossy.items())


def bind(
    layout: Layout,
    config: Config,
    options: Mapping[str, Value] | None = None,
    *,
    present: Collection[str] | None = None,
    inverse: bool = False,
) -> BoundLayout:
    """The layout for a config. Raises one PlanError with every mistake.

    **Arguments**: `options`: values for its options. `present`: the names of the checkpoint to convert (on the target
    side if `inverse`); an optional rule is in force if any of its names is present. Without `present`, all rules are.
    """
    given = dict(_options(layout, options or {}))
    if layout.bases and present is not None and not inverse:
        given.setdefault("base", likely_base(layout, present))
    if layout.forms:
        if present is not None and inverse:
            given.setdefault(TREE, likely_form(layout, present))
        layout = in_form(layout, given.get(TREE))
    if layout.separator != "." and present is not None and inverse:
        given.setdefault(NESTED, not any(layout.separator in name for name in present))
    dims = Dims(layout, config, given)
    given |= settle_options(layout, dims)
    if unsettled := [name for name in layout.choices if name not in given]:
        raise PlanError([_ask_option(layout, name) for name in unsettled])
    binder = _Binder(layout, dims, None if present is None else frozenset(present), inverse)
    pairs = tuple(p for rule in layout.rules for p in binder.rule(rule))
    left_out = present or () if layout.forms else ()
    drops = filter(_is_of_random_numbers, left_out) if inverse else (n for d in layout.drops for n in binder.drop(d))
    ties = tuple(t for tie in layout.ties for t in binder.tie(tie))
    problems = [*binder.problems, *_collisions(pairs, layout)]
    if problems:
        raise PlanError(problems)
    return BoundLayout(layout, {**layout.defaults, **given}, dims, pairs, frozenset(drops), ties)


def settle_options(layout: Layout, dims: Dims) -> dict[str, Value]:
    """Values from config.json for the options that have no default and were not given, where it determines them."""
    found: dict[str, Value] = {}
    for name, choice in layout.choices.items():
        if name not in dims.known:
            values = [value for condition, value in choice.known if _holds(condition, dims)]
            found |= {name: values[0]} if values else {}
    for name, value in found.items():
        dims.settle(name, value)
    return found


def _holds(condition: RuleCondition, dims: Dims) -> bool:
    """Whether a condition holds. One about a field that config.json lacks does not."""
    try:
        return in_force([condition], dims)
    except Refusal:
        return False


def _ask_option(layout: Layout, name: str) -> Diagnostic:
    asked = layout.choices[name].ask
    found = f"{layout.name}: config.json does not determine the option '{name}', which changes numbers. {asked}"
    values = ("true", "false") if isinstance(layout.options[name], bool) else ("VALUE",)
    ways = [worded(shell=f"--option {name}={v}", python=f"options={{'{name}': {v.capitalize()}}}") for v in values]
    calls = " or ".join(f"`{way}`" for way in ways)
    written = " or ".join(f"`options: {{{name}: {value}}}`" for value in values)
    return Diagnostic("layout-open", found, hint=f"Give {calls}; in a plan, write {written}.")


def likely_base(layout: Layout, present: Collection[str]) -> str:
    """The base that most of the names begin with; the first one if several are equally frequent."""
    longer = {
        base: [other for other in layout.bases if other != base and other.startswith(base)] for base in layout.bases
    }
    count = {
        base: sum(n.startswith(base) and not any(n.startswith(o) for o in longer[base]) for n in present)
        for base in layout.bases
    }
    return max(layout.bases, key=count.__getitem__)


def in_form(layout: Layout, name: Value) -> Layout:
    """The layout with the names of one of its trees, of the first by default. Raises PlanError for an unknown one."""
    form = layout.forms.get(next(iter(layout.forms)) if name is None else str(name))
    if form is None:
        hint = f"Trees of {layout.name}: {', '.join(layout.forms)}."
        near = did_you_mean(str(name), layout.forms)
        found = f"{layout.name} has no tree '{name}'.{near}"
        raise PlanError([Diagnostic("layout-option", found, hint=hint)])
    return replace(layout, prefix=form.prefix, leaf=form.leaf)


def likely_form(layout: Layout, present: Collection[str]) -> str:
    """The tree whose prefix and last key most of the names have, of equally frequent ones that with the longest. Names
    of an optimizer's state, which begin otherwise, are not counted."""
    present = [n for n in present if n.partition(".")[0] not in OPTIMIZER]

    def count(name: str) -> tuple[int, int]:
        start, end = f"{layout.forms[name].prefix}.".lstrip("."), f".{layout.forms[name].leaf}".rstrip(".")
        return sum(n.startswith(start) and n.endswith(end) for n in present), len(start)

    return max(layout.forms, key=count)


def _is_of_random_numbers(name: str) -> bool:
    """Whether a leaf belongs to a stream of random numbers, which NNX keeps among the weights."""
    return any(part == "rngs" or part.endswith("_rngs") for part in name.split("."))


def _options(layout: Layout, options: Mapping[str, Value]) -> Mapping[str, Value]:
    problems = []
    for name, value in options.items():
        if name not in layout.options:
            hint = f"Options of {layout.name}: {', '.join(layout.options) or 'none'}."
            near = did_you_mean(name, layout.options)
            problems.append(Diagnostic("layout-option", f"{layout.name} has no option '{name}'.{near}", hint=hint))
        elif type(value) is not type(layout.options[name]):
            kind = {bool: "true or false", int: "a whole number"}.get(type(layout.options[name]), "a text")
            found = f"the option '{name}' of {layout.name} is {kind}, got {value!r}"
            problems.append(Diagnostic("layout-option", found))
    if problems:
        raise PlanError(problems)
    return options


class _OpRefusal(Refusal):
    """A refusal by an op of a rule, with the place of that op."""

    def __init__(self, use: OpUse, bad: Refusal) -> None:
        super().__init__(bad.code, f"{use.name}: {bad.message}", hint=bad.hint)
        self.span = use.span


class _Binder:
    """Binds one rule after the other and collects the mistakes in `problems`, each one once."""

    def __init__(self, layout: Layout, dims: Dims, present: frozenset[str] | None, inverse: bool) -> None:
        self.layout, self.dims, self.present, self.inverse = layout, dims, present, inverse
        self.problems: list[Diagnostic] = []
        self.messages: set[str] = set()

    def complain(self, bad: Refusal, entry: LayoutRule | DropRule | TieRule, about: str) -> None:
        if bad.message not in self.messages:
            self.messages.add(bad.message)
            span = bad.span if isinstance(bad, _OpRefusal) else entry.span
            self.problems.append(Diagnostic(bad.code, f"{about}: {bad.message}", span, bad.hint))

    def rule(self, rule: LayoutRule) -> list[Correspondence]:
        about = f"the rule of '{rule.hf[0].text}'"
        try:
            if not in_force(rule.conditions, self.dims):
                return []
            pairs = list(_pairs(rule, self.dims, self.layout))
        except Refusal as bad:
            self.complain(bad, rule, about)
            return []
        if rule.optional and self.present is not None:
            names = {n for p in pairs for n in (p.target if self.inverse else p.hf)}
            return pairs if names & self.present else []
        return pairs

    def drop(self, drop: DropRule) -> list[str]:
        try:
            if not in_force(drop.conditions, self.dims):
                return []
            return [
                t.fill(_Both(self.dims, place))
                for t in drop.names
                for place in _places([n for n in drop.ranges if n in t.names], drop.ranges, self.dims)
            ]
        except Refusal as bad:
            self.complain(bad, drop, f"the drop of '{drop.names[0].text}'")
            return []

    def tie(self, tie: TieRule) -> list[TiedPair]:
        try:
            if not in_force(tie.conditions, self.dims):
                return []
            return [TiedPair(tie.copy.fill(self.dims), tie.original.fill(self.dims))]
        except Refusal as bad:
            self.complain(bad, tie, f"the tie of '{tie.copy.text}'")
            return []


def in_force(conditions: Sequence[RuleCondition], dims: Mapping[str, Value]) -> bool:
    """Whether every condition holds."""
    return all(bool(c.formula.value(dims)) is not c.negated for c in conditions)


class _Both(Mapping[str, Value]):
    """Dims, shadowed by indices."""

    def __init__(self, dims: Mapping[str, Value], indices: Mapping[str, int]):
        self.dims, self.indices = dims, indices

    def __getitem__(self, name: str) -> Value:
        return self.indices[name] if name in self.indices else self.dims[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.indices, *self.dims))

    def __len__(self) -> int:
        return len(self.indices) + len(self.dims)


def _places(labels: Sequence[str], ranges: Mapping[str, SizeExpression], dims: Dims) -> Iterator[dict[str, int]]:
    """Every combination of the indices."""
    for place in product(*(range(ranges[n].integer(dims)) for n in labels)):
        yield dict(zip(labels, place, strict=True))


def _indices_of(side: Sequence[NameTemplate], ranges: Mapping[str, SizeExpression]) -> list[str]:
    """The indices that names use, in the order of their ranges."""
    names = frozenset().union(*(t.names for t in side))
    return [n for n in ranges if n in names]


def _pairs(rule: LayoutRule, dims: Dims, layout: Layout) -> Iterator[Correspondence]:
    left, right = _indices_of(rule.hf, rule.ranges), _indices_of(rule.to, rule.ranges)
    outer = [n for n in left if n in right]
    sizes = {n: rule.ranges[n].integer(dims) for n in {*left, *right}}
    if 0 in sizes.values():
        return
    inner = tuple(Axis(n, sizes[n]) for n in left if n not in outer)
    family = _family(rule, inner, dims)
    wanted = {n: sizes[n] for n in right if n not in outer} | ({LIST: len(rule.to)} if len(rule.to) > 1 else {})
    chain, after = _chain(rule, family, dims, wanted)
    _check_after(after, wanted)
    for place in _places(outer, rule.ranges, dims):
        yield Correspondence(
            tuple(_member_names(rule.hf, family.axes, dims, place)),
            tuple(_target_name(n, layout, dims) for n in _member_names(rule.to, after.axes, dims, place)),
            chain, family.shapes, after.shapes, rule, family.axes,
        )  # fmt: skip


def _target_name(name: str, layout: Layout, dims: Dims) -> str:
    """A name of the target below its prefix, its parts joined as the target has them."""
    whole = f"{layout.prefix}.{name}" if layout.prefix else name
    whole = f"{whole}.{layout.leaf}" if layout.leaf else whole
    return whole if layout.separator == "." or dims[NESTED] else whole.replace(".", layout.separator)


def _family(rule: LayoutRule, inner: tuple[Axis, ...], dims: Dims) -> TensorFamily:
    """The tensors on the Hugging Face side: the list of names first, then the indices that only it has."""
    shapes = [tuple(s.integer(dims) for s in shape) for shape in rule.shapes]
    each = 1
    for axis in inner:
        each *= axis.size
    several = (Axis(LIST, len(rule.hf)),) if len(rule.hf) > 1 else ()
    return TensorFamily((*several, *inner), tuple(s for s in shapes for _ in range(each)))


def _chain(rule: LayoutRule, family: TensorFamily, dims: Dims, sizes: Mapping[str, int]) -> tuple[Chain, TensorFamily]:
    actions = []
    for use in rule.ops:
        bound = _bind_op(use, family, dims, sizes)
        actions.append(bound.action)
        family = bound.family
    return Chain(tuple(actions)), family


def _bind_op(use: OpUse, family: TensorFamily, dims: Dims, sizes: Mapping[str, int]) -> BoundOp:
    try:
        return OPS[use.name].bind(use.args, OpContext(family, dims, sizes))
    except Refusal as bad:
        raise _OpRefusal(use, bad) from bad


def _check_after(after: TensorFamily, wanted: Mapping[str, int]) -> None:
    """Refuse a chain whose results are not the tensors that `to` names."""
    left = {a.label: a.size for a in after.axes}
    if left != dict(wanted):
        found = f"the ops end in tensors over {_describe_axes(left)}, but `to` names them over {_describe_axes(wanted)}"
        raise Refusal("layout-family", found)


def _describe_axes(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{label} ({size})" for label, size in axes.items()) or "nothing"


def _member_names(
    side: Sequence[NameTemplate], axes: Sequence[Axis], dims: Dims, place: Mapping[str, int]
) -> Iterator[str]:
    """The names of a family's members, in its order."""
    labels = [a.label for a in axes]
    for at in product(*(range(a.size) for a in axes)):
        indices = dict(zip(labels, at, strict=True))
        yield side[indices.pop(LIST, 0)].fill(_Both(dims, {**place, **indices}))


def _collisions(pairs: Sequence[Correspondence], layout: Layout) -> Iterator[Diagnostic]:
    """The names that two tensors map to: they keep the layout from being a bijection."""
    for side, of in (("Hugging Face", "hf"), ("target", "target")):
        other = "target" if of == "hf" else "hf"
        seen: dict[str, Correspondence] = {}
        reported: set[tuple[int, int]] = set()
        for pair in pairs:
            for name in getattr(pair, of):
                first = seen.setdefault(name, pair)
                if first is pair and getattr(pair, of).count(name) == 1:
                    continue
                key = (id(first.rule), id(pair.rule))
                if key not in reported:
                    reported.add(key)
                    a, b = getattr(first, other)[0], getattr(pair, other)[0]
                    message = f"not a bijection: '{a}' and '{b}' both correspond to the {side} name '{name}'"
                    yield Diagnostic("layout-bijection", message, pair.rule.span, _where(first.rule, pair.rule))


def _where(first: LayoutRule, second: LayoutRule) -> str:
    if first is second:
        return "The name lacks an index, or a formula has the same value twice."
    return f"The other rule is at {first.span}."


def shapes_close(pair: Correspondence) -> bool:
    """Whether the chain and its inverse end in the shapes that the rule declares."""
    there = pair.chain.forward(pair.hf_shapes, Shapes())
    return tuple(there) == pair.target_shapes and tuple(pair.chain.inverse(there, Shapes())) == pair.hf_shapes
