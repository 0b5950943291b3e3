"""A layout and a config made concrete: which tensors correspond, in which shapes, and the ops between them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, did_you_mean, worded
from brainsurgery_jax.layout.actions import Chain, Shape, Shapes
from brainsurgery_jax.layout.config import Dims
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.families import LIST, Axis, Bind, Family
from brainsurgery_jax.layout.model import Condition, Drop, Layout, OpUse, Rule, Tie
from brainsurgery_jax.layout.ops import OPS
from brainsurgery_jax.layout.templates import Template


@dataclass(frozen=True, slots=True)
class Correspondence:
    """Tensors of the one side that are those of the other, and the chain that leads there and back."""

    hf: tuple[str, ...]
    target: tuple[str, ...]
    chain: Chain
    hf_shapes: tuple[Shape, ...]
    target_shapes: tuple[Shape, ...]
    rule: Rule
    axes: tuple[Axis, ...] = ()  # along which the tensors of the Hugging Face side lie, in row-major order


class TiedPair(NamedTuple):
    """A copy that may be there, and the tensor that it is a copy of, by their Hugging Face names."""

    copy: str
    original: str


@dataclass(frozen=True, slots=True)
class Bound:
    """A layout for one config. Names of the target have its prefix."""

    layout: Layout
    options: Mapping[str, Value]
    dims: Dims
    pairs: tuple[Correspondence, ...]
    drops: frozenset[str]
    ties: tuple[TiedPair, ...]

    def lossy(self) -> tuple[tuple[Rule, str], ...]:
        """The rules in force that cannot give every bit back, and why."""
        told: dict[Rule, str] = {}
        for rule in dict.fromkeys(p.rule for p in self.pairs):
            reasons = [r for use in rule.ops if (r := OPS[use.name].loses(use.args, self.dims))]
            if reasons:
                told[rule] = "; ".join(dict.fromkeys(reasons))
        return tuple(told.items())


def bind(
    layout: Layout,
    config: Mapping[str, Any],
    options: Mapping[str, Value] | None = None,
    *,
    present: Collection[str] | None = None,
    inverse: bool = False,
) -> Bound:
    """The layout for a config. Raises one PlanError with every mistake.

    **Arguments**: `options` are values for its options. `present`: the names of the checkpoint to convert (of the
    target's side if `inverse`); optional rules are in force if any of their names is there. Without it all are.
    """
    given = dict(_options(layout, options or {}))
    if layout.bases and present is not None and not inverse:
        given.setdefault("base", likely_base(layout, present))
    dims = Dims(layout, config, given)
    given |= settled(layout, dims)
    if unsettled := [name for name in layout.choices if name not in given]:
        raise PlanError([_open(layout, name) for name in unsettled])
    binder = _Binder(layout, dims, None if present is None else frozenset(present), inverse)
    pairs = tuple(p for rule in layout.rules for p in binder.rule(rule))
    drops = frozenset(n for drop in layout.drops for n in binder.drop(drop))
    ties = tuple(t for tie in layout.ties for t in binder.tie(tie))
    problems = [*binder.problems, *_collisions(pairs, layout)]
    if problems:
        raise PlanError(problems)
    return Bound(layout, {**layout.defaults, **given}, dims, pairs, drops, ties)


def settled(layout: Layout, dims: Dims) -> dict[str, Value]:
    """The values of options that have no default and were not given, as far as config.json settles them."""
    found: dict[str, Value] = {}
    for name, choice in layout.choices.items():
        if name not in dims.known:
            values = [value for condition, value in choice.known if _holds(condition, dims)]
            found |= {name: values[0]} if values else {}
    for name, value in found.items():
        dims.settle(name, value)
    return found


def _holds(condition: Condition, dims: Dims) -> bool:
    """Whether a condition holds. One about what config.json does not tell does not."""
    try:
        return in_force([condition], dims)
    except Refusal:
        return False


def _open(layout: Layout, name: str) -> Diagnostic:
    asked = layout.choices[name].ask
    found = f"{layout.name}: config.json does not settle the option '{name}', which changes numbers. {asked}"
    values = ("true", "false") if isinstance(layout.options[name], bool) else ("VALUE",)
    ways = [worded(shell=f"--option {name}={v}", python=f"options={{'{name}': {v.capitalize()}}}") for v in values]
    said = " or ".join(f"`{way}`" for way in ways)
    written = " or ".join(f"`options: {{{name}: {value}}}`" for value in values)
    return Diagnostic("layout-open", found, hint=f"Say {said}; in a plan {written}.")


def likely_base(layout: Layout, present: Collection[str]) -> str:
    """The base that most of the names begin with; of equally many the first."""
    longer = {
        base: [other for other in layout.bases if other != base and other.startswith(base)] for base in layout.bases
    }
    count = {
        base: sum(n.startswith(base) and not any(n.startswith(o) for o in longer[base]) for n in present)
        for base in layout.bases
    }
    return max(layout.bases, key=count.__getitem__)


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


class _Binder:
    """Binds rule after rule; what is wrong collects in `problems`, each mistake once."""

    def __init__(self, layout: Layout, dims: Dims, present: frozenset[str] | None, inverse: bool) -> None:
        self.layout, self.dims, self.present, self.inverse = layout, dims, present, inverse
        self.problems: list[Diagnostic] = []
        self.told: set[str] = set()

    def complain(self, bad: Refusal, entry: Rule | Drop | Tie, about: str) -> None:
        if bad.message not in self.told:
            self.told.add(bad.message)
            span = getattr(bad, "span", None) or entry.span
            self.problems.append(Diagnostic(bad.code, f"{about}: {bad.message}", span, bad.hint))

    def rule(self, rule: Rule) -> list[Correspondence]:
        about = f"the rule of '{rule.hf[0].text}'"
        try:
            if not in_force(rule.conditions, self.dims):
                return []
            made = list(_pairs(rule, self.dims, self.layout.prefix))
        except Refusal as bad:
            self.complain(bad, rule, about)
            return []
        if rule.optional and self.present is not None:
            names = {n for p in made for n in (p.target if self.inverse else p.hf)}
            return made if names & self.present else []
        return made

    def drop(self, drop: Drop) -> list[str]:
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

    def tie(self, tie: Tie) -> list[TiedPair]:
        try:
            if not in_force(tie.conditions, self.dims):
                return []
            return [TiedPair(tie.copy.fill(self.dims), tie.original.fill(self.dims))]
        except Refusal as bad:
            self.complain(bad, tie, f"the tie of '{tie.copy.text}'")
            return []


def in_force(conditions: Sequence[Condition], dims: Mapping[str, Value]) -> bool:
    """Whether every condition is met."""
    return all(bool(c.formula.value(dims)) is not c.negated for c in conditions)


class _Both(Mapping[str, Value]):
    """Dims with indices over them."""

    def __init__(self, dims: Mapping[str, Value], indices: Mapping[str, int]):
        self.dims, self.indices = dims, indices

    def __getitem__(self, name: str) -> Value:
        return self.indices[name] if name in self.indices else self.dims[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.indices, *self.dims))

    def __len__(self) -> int:
        return len(self.indices) + len(self.dims)


def _places(labels: Sequence[str], ranges: Mapping[str, Any], dims: Dims) -> Iterator[dict[str, int]]:
    """Every choice of the indices."""
    for place in product(*(range(ranges[n].integer(dims)) for n in labels)):
        yield dict(zip(labels, place, strict=True))


def _used(side: Sequence[Template], ranges: Mapping[str, Any]) -> list[str]:
    """The indices in names, in the order of their ranges."""
    names = frozenset().union(*(t.names for t in side))
    return [n for n in ranges if n in names]


def _pairs(rule: Rule, dims: Dims, prefix: str) -> Iterator[Correspondence]:
    left, right = _used(rule.hf, rule.ranges), _used(rule.to, rule.ranges)
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
            tuple(_named(rule.hf, family.axes, dims, place)),
            tuple(prefix + "." + n if prefix else n for n in _named(rule.to, after.axes, dims, place)),
            chain, family.shapes, after.shapes, rule, family.axes,
        )  # fmt: skip


def _family(rule: Rule, inner: tuple[Axis, ...], dims: Dims) -> Family:
    """The tensors on the Hugging Face side: the list of names first, then the indices that only it has."""
    shapes = [tuple(s.integer(dims) for s in shape) for shape in rule.shapes]
    each = 1
    for axis in inner:
        each *= axis.size
    several = (Axis(LIST, len(rule.hf)),) if len(rule.hf) > 1 else ()
    return Family((*several, *inner), tuple(s for s in shapes for _ in range(each)))


def _chain(rule: Rule, family: Family, dims: Dims, sizes: Mapping[str, int]) -> tuple[Chain, Family]:
    actions = []
    for use in rule.ops:
        bound = _bound(use, family, dims, sizes)
        actions.append(bound.action)
        family = bound.family
    return Chain(tuple(actions)), family


def _bound(use: OpUse, family: Family, dims: Dims, sizes: Mapping[str, int]) -> Any:
    try:
        return OPS[use.name].bind(use.args, Bind(family, dims, sizes))
    except Refusal as bad:
        raise _placed(Refusal(bad.code, f"{use.name}: {bad.message}", hint=bad.hint), use) from bad


def _placed(bad: Refusal, use: OpUse) -> Refusal:
    bad.span = use.span  # type: ignore[attr-defined]
    return bad


def _check_after(after: Family, wanted: Mapping[str, int]) -> None:
    """Refuse a chain that ends in other tensors than `to` names."""
    left = {a.label: a.size for a in after.axes}
    if left != dict(wanted):
        found = f"the ops end in tensors over {_told(left)}, but `to` names them over {_told(wanted)}"
        raise Refusal("layout-family", found)


def _told(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{label} ({size})" for label, size in axes.items()) or "nothing"


def _named(side: Sequence[Template], axes: Sequence[Axis], dims: Dims, place: Mapping[str, int]) -> Iterator[str]:
    """The names of a family's members, in its order."""
    labels = [a.label for a in axes]
    for at in product(*(range(a.size) for a in axes)):
        indices = dict(zip(labels, at, strict=True))
        yield side[indices.pop(LIST, 0)].fill(_Both(dims, {**place, **indices}))


def _collisions(pairs: Sequence[Correspondence], layout: Layout) -> Iterator[Diagnostic]:
    """What keeps the layout from being a bijection: a name that two places give."""
    for side, of in (("Hugging Face", "hf"), ("target", "target")):
        other = "target" if of == "hf" else "hf"
        seen: dict[str, Correspondence] = {}
        told: set[tuple[int, int]] = set()
        for pair in pairs:
            for name in getattr(pair, of):
                first = seen.setdefault(name, pair)
                if first is pair and getattr(pair, of).count(name) == 1:
                    continue
                key = (id(first.rule), id(pair.rule))
                if key not in told:
                    told.add(key)
                    a, b = getattr(first, other)[0], getattr(pair, other)[0]
                    message = f"not a bijection: '{a}' and '{b}' both go with the {side} name '{name}'"
                    yield Diagnostic("layout-bijection", message, pair.rule.span, _where(first.rule, pair.rule))


def _where(first: Rule, second: Rule) -> str:
    if first is second:
        return "An index is missing in the name, or a formula gives the same number twice."
    return f"The other rule stands at {first.span}."


def shapes_close(pair: Correspondence) -> bool:
    """Whether the way there and back ends in the shapes that the rule declares."""
    there = pair.chain.forward(pair.hf_shapes, Shapes())
    return tuple(there) == pair.target_shapes and tuple(pair.chain.inverse(there, Shapes())) == pair.hf_shapes
