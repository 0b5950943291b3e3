"""Parse the text of a layout file to a `Layout`. All mistakes of the file are reported at once, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, Span, did_you_mean
from brainsurgery_jax.families.model import Family
from brainsurgery_jax.layout.arguments import read_formulas
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.blocks import PLACE_KEYS, Places, expand
from brainsurgery_jax.layout.described import dims_of, family_named, shape_of
from brainsurgery_jax.layout.expressions import SizeExpression, Value, parse_expression
from brainsurgery_jax.layout.indices import indices_of, unaccounted
from brainsurgery_jax.layout.model import (
    KEYS,
    NESTED,
    TREE,
    Adapters,
    DropRule,
    Layout,
    LayoutRule,
    OpenOption,
    OpUse,
    RuleCondition,
    TieRule,
    TreeForm,
)
from brainsurgery_jax.layout.ops import OpCall, read_op
from brainsurgery_jax.layout.templates import NameTemplate, parse_template
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, compose, describe, get, plain

T = TypeVar("T")
Shapes = tuple[tuple[SizeExpression, ...], ...]


def parse_layout(text: str, file: str) -> Layout:
    """The layout in a text. Raises one PlanError with every mistake."""
    root = compose(text, file)
    parser = _LayoutParser(file)
    if not isinstance(root, Map):
        parser.complain("layout-form", "a layout is a mapping with the keys layout and rules", Span(file))
        raise PlanError(parser.problems)
    layout = parser.layout(root)
    if parser.problems:
        found = [*parser.problems, *_mistakes_of_the_rest(layout)]
        raise PlanError(sorted(found, key=lambda d: d.span or Span("")))
    return layout


def _mistakes_of_the_rest(layout: Layout) -> Iterator[Diagnostic]:
    """The mistakes in the rules that could be parsed, bound for the layout's example: reported in the same run."""
    try:
        if layout.example:
            bind(layout, layout.example)
    except PlanError as bad:
        # A field may seem missing from config.json because its dim could not be parsed.
        yield from (d for d in bad.diagnostics if d.code != "layout-config")


class _LayoutParser:
    """Parses one layout and collects its mistakes in `problems`."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Diagnostic] = []
        self.dims: dict[str, tuple[SizeExpression, ...]] = {}
        self.options: dict[str, Value] = {}
        self.choices: dict[str, OpenOption] = {}
        self.ranges: dict[str, SizeExpression] = {}
        self.family: Family | None = None

    def complain(self, code: str, message: str, span: Span, hint: str = "") -> None:
        found = Diagnostic(code, message, span, hint)
        if found not in self.problems:  # a rule of a block is read once for each place
            self.problems.append(found)

    def read(self, label: str, node: Node, read: Callable[[object], T]) -> T | None:
        """Apply a reader to a node's data. A refusal becomes a mistake at the node."""
        try:
            return read(plain(node))
        except Refusal as bad:
            self.complain(bad.code, f"{label}: {bad.message}", node.span, bad.hint)
            return None

    # --- the file

    def layout(self, root: Map) -> Layout:
        self.check_keys(root)
        target = self.map(root, "target")
        self.keys(target, KEYS["target"], "target")
        forms = self.forms(target)
        prefix = next((form.prefix for form in forms.values()), self.text(target, "prefix"))
        bases = self.texts(root, "base")
        separator = self.text(target, "separator")
        own: dict[str, bool | str] = {"base": bases[0]} if bases else {}
        if forms:
            own[TREE] = next(iter(forms))
        if separator:
            own[NESTED] = False
        if (named := get(root, "family")) is not None:
            self.family = self.read("family", named, family_named)
            if self.family is None:
                raise PlanError(self.problems)  # every dim would be unknown
        self.read_sizes(root, own)
        blocks = {k.text: self.places(k, v) for k, v in self.map(root, "blocks").entries}
        entries = [self.entry(node) for item in self.items(root, "rules") for node in self.expand(item, blocks)]
        return Layout(
            name=self.text(root, "layout"),
            doc=self.text(root, "doc"),
            source=self.text(root, "source"),
            format=self.text(target, "format") or "orbax",
            format_options=plain(self.map(target, "options")),
            prefix=prefix,
            models=self.texts(root, "models"),
            places=self.texts(root, "config"),
            dims=self.dims,
            options=self.options,
            ranges=self.ranges,
            bases=bases,
            rules=tuple(e for e in entries if isinstance(e, LayoutRule)),
            drops=tuple(e for e in entries if isinstance(e, DropRule)),
            ties=tuple(e for e in entries if isinstance(e, TieRule)),
            rest=self.flag(root, "rest"),
            example=plain(self.map(root, "example")),
            span=root.span,
            adapters=self.adapters(root, prefix),
            choices=self.choices,
            separator=separator or ".",
            forms=forms,
        )

    def check_keys(self, root: Map) -> None:
        """Report keys that are not known, and those that are missing."""
        self.keys(root, KEYS["layout"], "layout")
        for key in ("layout", "doc", "rules"):
            if get(root, key) is None and not (key == "rules" and get(root, "rest")):
                self.complain("layout-form", f"missing key '{key}'", root.span)

    def forms(self, target: Map) -> dict[str, TreeForm]:
        """The trees that the library has. Their leaves have one key more, or none."""
        found = {}
        for key, node in self.map(target, "forms").entries:
            form = self.map(Map(((key, node),), node.span), key.text)
            self.keys(form, KEYS["form"], f"target.forms.{key.text}")
            found[key.text] = TreeForm(self.text(form, "prefix"), self.text(form, "leaf"))
        return found

    def read_sizes(self, root: Map, own: Mapping[str, bool | str]) -> None:
        """Read the options, beside those that every layout of its kind has, the sizes, beside those of its family, and
        the ranges, which the rules use."""
        self.options = dict(own)
        asked = [(k, v) for k, v in self.map(root, "options").entries if isinstance(v, Map)]
        self.options |= {k.text: self.option(k, v) for k, v in self.map(root, "options").entries if (k, v) not in asked}
        described = dims_of(self.family) if self.family is not None else {}
        for key, node in self.map(root, "dims").entries:
            if key.text in described:
                hint = "Leave it out, or give yours another name."
                self.complain("layout-dim", f"dims.{key.text}: the family has this dim", node.span, hint)
        self.dims = {**described, **{k.text: self.alternatives(k, v) for k, v in self.map(root, "dims").entries}}
        for key, node in asked:
            self.choose(key, node)
        self.ranges = self.range_map(root, self.dims)

    def adapters(self, root: Map, prefix: str) -> Adapters:
        node = self.map(root, "adapters")
        self.keys(node, KEYS["adapters"], "adapters")
        own = prefix if get(node, "prefix") is None else self.text(node, "prefix")
        return Adapters(own, self.text(node, "leaf"), self.flag(node, "flat"))

    def keys(self, node: Map, known: Iterable[str], label: str) -> None:
        for key, _ in node.entries:
            if key.text not in known:
                hint = f"Keys: {', '.join(known)}."
                self.complain(
                    "layout-key", f"{label}: unknown key '{key.text}'.{did_you_mean(key.text, known)}", key.span, hint
                )

    def map(self, root: Map, key: str) -> Map:
        node = get(root, key)
        if node is None or isinstance(node, Map):
            return node or Map((), root.span)
        self.complain("layout-form", f"{key}: expected a mapping, got {describe(node)}", node.span)
        return Map((), node.span)

    def items(self, root: Map, key: str) -> tuple[Node, ...]:
        node = get(root, key)
        if node is None or isinstance(node, List):
            return node.items if node else ()
        self.complain("layout-form", f"{key}: expected a list, got {describe(node)}", node.span)
        return ()

    def text(self, root: Map, key: str) -> str:
        node = get(root, key)
        if node is None or isinstance(node, Scalar):
            return node.text if node else ""
        self.complain("layout-form", f"{key}: expected text, got {describe(node)}", node.span)
        return ""

    def texts(self, root: Map, key: str) -> tuple[str, ...]:
        node = get(root, key)
        nodes = node.items if isinstance(node, List) else (node,) if node else ()
        if all(isinstance(n, Scalar) for n in nodes):
            return tuple(str(plain(n)) for n in nodes)
        assert node is not None
        self.complain("layout-form", f"{key}: expected a list of texts, got {describe(node)}", node.span)
        return ()

    def flag(self, root: Map, key: str) -> bool:
        node = get(root, key)
        value = None if node is None else plain(node)
        if node is not None and not isinstance(value, bool):
            self.complain("layout-form", f"{key}: expected true or false, got {describe(node)}", node.span)
        return value is True

    def option(self, key: Scalar, node: Node) -> Value:
        value = plain(node)
        if isinstance(value, bool | int | str):
            return value
        found = f"expected true, false, a number or text, got {describe(node)}"
        self.complain("layout-form", f"options.{key.text}: {found}", node.span)
        return None

    def choose(self, key: Scalar, node: Map) -> None:
        """An option without a default: the conditions that determine it, and the question for the user if none does."""
        label = f"options.{key.text}"
        self.keys(node, KEYS["choice"], label)
        known: list[tuple[RuleCondition, Value]] = []
        for item in self.items(node, "known"):
            entry = item if isinstance(item, Map) else Map((), item.span)
            self.keys(entry, KEYS["known"], f"{label}.known")
            value = get(entry, "is")
            if value is None or sum(get(entry, key) is not None for key in ("when", "unless")) != 1:
                hint = "Write what determines it, `{when: rope == 'llama3', is: true}`."
                self.complain("layout-form", f"{label}.known: expected a condition and `is`", item.span, hint)
                continue
            known += ((condition, self.option(key, value)) for condition in self.conditions(entry))
        if not self.items(node, "known") or not (ask := self.text(node, "ask")):
            hint = f"Write `{key.text}: {{known: [{{when: FORMULA, is: VALUE}}], ask: WHAT IT IS ABOUT}}`."
            self.complain("layout-form", f"{label}: expected `known` and `ask`", node.span, hint)
            ask = ""
        self.options[key.text] = known[0][1] if known else None
        self.choices[key.text] = OpenOption(tuple(known), ask)

    # --- formulas

    def alternatives(self, key: Scalar, node: Node) -> tuple[SizeExpression, ...]:
        nodes = node.items if isinstance(node, List) else (node,)
        read = (self.read(f"dims.{key.text}", n, lambda v: parse_expression(_read_text(v))) for n in nodes)
        return tuple(e for e in read if e is not None)

    def range_map(self, root: Map, known: Iterable[str]) -> dict[str, SizeExpression]:
        found = {}
        for key, node in self.map(root, "ranges").entries:
            formula = self.read(f"ranges.{key.text}", node, lambda v: parse_expression(_read_text(v)))
            if formula is not None and self.check_names(formula, node.span, f"ranges.{key.text}"):
                found[key.text] = formula
        return found

    def check_names(self, formula: SizeExpression, span: Span, label: str, indices: Iterable[str] = ()) -> bool:
        """Whether a formula uses dims, options (and indices) only. Complains if it does not."""
        there = [*self.dims, *self.options, *indices]
        for name in sorted(formula.names.difference(there)):
            hint = f"Known: {', '.join(there)}. Name fields of config.json under `dims`."
            self.complain("layout-dim", f"{label}: unknown name '{name}'.{did_you_mean(name, there)}", span, hint)
        return not formula.names.difference(there)

    def conditions(self, node: Map) -> tuple[RuleCondition, ...]:
        found = []
        for key, value in node.entries:
            if key.text in ("when", "unless"):
                formula = self.read(key.text, value, lambda v: parse_expression(_read_text(v)))
                if formula is not None and self.check_names(formula, value.span, key.text):
                    found.append(RuleCondition(formula, negated=key.text == "unless"))
        return tuple(found)

    # --- blocks

    def places(self, key: Scalar, node: Node) -> tuple[Map, ...]:
        nodes = node.items if isinstance(node, List) else (node,)
        found = [n for n in nodes if isinstance(n, Map)]
        if len(found) < len(nodes):
            message = f"blocks.{key.text}: expected a list of places, each a mapping with `hf` and `to`"
            self.complain("layout-form", message, node.span)
        for place in found:
            self.keys(place, PLACE_KEYS, f"blocks.{key.text}")
        return tuple(found)

    def expand(self, node: Node, blocks: Places) -> Iterator[Node]:
        if isinstance(node, Map):
            yield from expand(node, blocks)
        else:
            yield node

    # --- rules

    def entry(self, node: Node) -> LayoutRule | DropRule | TieRule | None:
        if not isinstance(node, Map):
            message = f"a rule is a mapping with `hf` and `to`, or `drop`, or `tie`; got {describe(node)}"
            self.complain("layout-form", message, node.span)
            return None
        before = len(self.problems)
        if get(node, "drop") is not None:
            made = self.drop(node)
        elif get(node, "tie") is not None:
            made = self.tie(node)
        else:
            made = self.rule(node)
        return made if len(self.problems) == before else None

    def rule(self, node: Map) -> LayoutRule:
        self.keys(node, KEYS["rule"], "rule")
        for key in ("hf", "to", "shape"):
            if get(node, key) is None and (key != "shape" or self.family is None):
                self.complain("layout-form", f"rule: missing key '{key}'", node.span)
        own = self.range_map(node, self.dims)
        ranges = {**self.ranges, **own}
        hf, to = self.templates(node, "hf", ranges), self.templates(node, "to", ranges)
        uses = [self.use(item) for item in self.items(node, "ops")]
        ops = [(u, n.span) for u, n in zip(uses, self.items(node, "ops"), strict=True) if u is not None]
        if hf and to and len(ops) == len(uses):
            for message, hint in unaccounted(indices_of(hf, ranges), indices_of(to, ranges), [u for u, _ in ops]):
                self.complain("layout-family", f"rule: {message}", node.span, hint)
        described = self.described("hf", node, hf, given=get(node, "shape") is not None)
        shapes = described if get(node, "shape") is None else self.shapes(node, len(hf))
        return LayoutRule(
            hf, to, shapes, tuple(OpUse(u.op.name, u.args, s) for u, s in ops), node.span, ranges,
            self.conditions(node), self.flag(node, "optional"), self.flag(node, "integer"),
        )  # fmt: skip

    def templates(self, node: Map, key: str, indices: Iterable[str]) -> tuple[NameTemplate, ...]:
        value = get(node, key)
        nodes = value.items if isinstance(value, List) else (value,) if value else ()
        found = []
        for n in nodes:
            template = self.read(key, n, lambda v: parse_template(_read_text(v)))
            if template is not None:
                formulas = [p for p in template.parts if isinstance(p, SizeExpression)]
                if all([self.check_names(f, n.span, key, indices) for f in formulas]):
                    found.append(template)
        return tuple(found) if len(found) == len(nodes) else ()

    def described(self, key: str, node: Map, names: tuple[NameTemplate, ...], *, given: bool) -> Shapes:
        """The shapes of Hugging Face names by the table of the family, which must have every one."""
        if self.family is None:
            return ()
        known = partial(shape_of, self.family, given=given)
        read = (self.read(key, node, lambda _, name=template.text: known(name)) for template in names)
        return tuple(shape for shape in read if shape is not None)

    def shapes(self, node: Map, count: int) -> Shapes:
        """One shape for all names of the Hugging Face side, or a list with one for each name."""
        value = get(node, "shape")
        if not isinstance(value, List):
            if value is not None:
                self.complain("layout-form", f"shape: expected a list of sizes, got {describe(value)}", value.span)
            return ()
        several = bool(value.items) and all(isinstance(i, List) for i in value.items)
        nodes = value.items if several else (value,)
        if several and len(nodes) != count:
            self.complain("layout-form", f"shape: {len(nodes)} shapes for {count} names", value.span)
        read = [self.sizes("shape", n) for n in nodes]
        return tuple(read) if several else tuple(read) * count

    def sizes(self, key: str, node: Node) -> tuple[SizeExpression, ...]:
        found = self.read(key, node, read_formulas) or ()
        for formula in found:
            self.check_names(formula, node.span, key)
        return found

    def use(self, node: Node) -> OpCall | None:
        use = self.read("ops", node, read_op)
        if use is not None:
            ok = [self.check_names(f, node.span, use.op.name) for f in use.op.formulas(use.args)]
            return use if all(ok) else None
        return None

    def drop(self, node: Map) -> DropRule:
        self.keys(node, KEYS["drop"], "drop")
        ranges = {**self.ranges, **self.range_map(node, self.dims)}
        return DropRule(self.templates(node, "drop", ranges), ranges, self.conditions(node), node.span)

    def tie(self, node: Map) -> TieRule:
        self.keys(node, KEYS["tie"], "tie")
        value = get(node, "tie")
        if not isinstance(value, List) or len(value.items) != 2:
            self.complain("layout-form", "tie: expected two names, [copy, original]", node.span)
            return TieRule(NameTemplate("", ()), NameTemplate("", ()), (), node.span)
        copy, original = pair = self.templates(node, "tie", ()) or (NameTemplate("", ()), NameTemplate("", ()))
        self.described("tie", node, pair, given=True)
        return TieRule(copy, original, self.conditions(node), node.span)


def _read_text(value: object) -> str:
    """A scalar as text. Raises Refusal for lists and mappings."""
    if isinstance(value, list | dict) or value is None:
        raise Refusal("layout-form", f"expected text, got {value!r}")
    return str(value)
