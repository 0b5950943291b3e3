"""A layout as data: the content of its file, checked and typed, with the position of every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Span
from brainsurgery_jax.layout.expressions import Config, SizeExpression, Value
from brainsurgery_jax.layout.templates import NameTemplate

Args = Any
"""The arguments of an op in a rule: what the op's `read` returns and its other functions take."""


NESTED = "nested"
"""The option of a layout with a separator: names of the target are joined by dots, for a tree of dicts."""


TREE = "tree"
"""The option of a layout with several forms of its tree."""


KEYS: Mapping[str, tuple[str, ...]] = {
    "layout": (
        "layout", "doc", "source", "target", "family", "models", "config", "dims", "options", "ranges", "base",
        "blocks", "rules", "rest", "adapters", "example",
    ),
    "rule": ("hf", "to", "shape", "ops", "ranges", "when", "unless", "optional", "integer"),
    "drop": ("drop", "ranges", "when", "unless"),
    "tie": ("tie", "when", "unless"),
    "choice": ("known", "ask"),
    "known": ("when", "unless", "is"),
    "adapters": ("prefix", "leaf", "flat"),
    "target": ("format", "options", "prefix", "separator", "forms"),
    "form": ("prefix", "leaf"),
}  # fmt: skip
"""The keys of a layout file, of the entries under `rules`, and of its smaller mappings."""


@dataclass(frozen=True, slots=True)
class OpUse:
    """An op of a rule with its arguments, as the table in `ops` reads them."""

    name: str
    args: Args
    span: Span


@dataclass(frozen=True, slots=True)
class RuleCondition:
    """A rule is in force `when` a formula holds or, if `negated`, unless it does."""

    formula: SizeExpression
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class LayoutRule:
    """Tensors on one side, tensors on the other, and the ops between them.

    `integer`: the tensors are buffers of whole numbers, not weights.
    """

    hf: tuple[NameTemplate, ...]
    to: tuple[NameTemplate, ...]
    shapes: tuple[tuple[SizeExpression, ...], ...]
    ops: tuple[OpUse, ...]
    span: Span
    ranges: Mapping[str, SizeExpression] = field(default_factory=dict)
    conditions: tuple[RuleCondition, ...] = ()
    optional: bool = False
    integer: bool = False


@dataclass(frozen=True, slots=True)
class DropRule:
    """Tensors that only a Hugging Face checkpoint may hold, and that no target needs."""

    names: tuple[NameTemplate, ...]
    ranges: Mapping[str, SizeExpression]
    conditions: tuple[RuleCondition, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class TieRule:
    """A tensor that a checkpoint may hold a second time, under the name `copy`."""

    copy: NameTemplate
    original: NameTemplate
    conditions: tuple[RuleCondition, ...]
    span: Span


class OpenOption(NamedTuple):
    """An option that changes numbers and has no default. The first condition in `known` that holds determines it. If
    none does, the user must give it; `ask` explains what it is about."""

    known: tuple[tuple[RuleCondition, Value], ...]
    ask: str


class TreeForm(NamedTuple):
    """A tree of the library that holds the same weights: its prefix, and a last key that every leaf is below."""

    prefix: str = ""
    leaf: str = ""


class Adapters(NamedTuple):
    """How the library stores the factors of LoRA: their prefix, their last key, and whether all input axes (or output
    axes) are merged into one."""

    prefix: str = ""
    leaf: str = ""
    flat: bool = False


NO_ADAPTERS = Adapters()


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A layout file. `models` empty: it is for every model. `rest`: a tensor that no rule names keeps its name.
    `file`: its path, unless it is a layout of the package.

    `separator`: what stands between the parts of a target name; unless it is a dot, the option `nested` takes a dot.
    `forms`: the trees that the library has, by name, the first one the default; `prefix` and `leaf` are those of the
    one in force, which the option `tree` chooses.
    `choices`: the options without a default; `options` holds a value of their type.
    `bases`: the texts that `{base}` may be on the Hugging Face side; the first one is the default.
    """

    name: str
    doc: str
    source: str
    format: str
    format_options: Mapping[str, object]
    prefix: str
    models: tuple[str, ...]
    places: tuple[str, ...]
    dims: Mapping[str, tuple[SizeExpression, ...]]
    options: Mapping[str, Value]
    ranges: Mapping[str, SizeExpression]
    bases: tuple[str, ...]
    rules: tuple[LayoutRule, ...]
    drops: tuple[DropRule, ...]
    ties: tuple[TieRule, ...]
    rest: bool
    example: Config
    span: Span
    file: str = ""
    adapters: Adapters = NO_ADAPTERS
    choices: Mapping[str, OpenOption] = field(default_factory=dict)
    separator: str = "."
    forms: Mapping[str, TreeForm] = field(default_factory=dict)
    leaf: str = ""

    @property
    def family(self) -> str:
        """The library of this layout: the first word of its name."""
        return self.name.partition("-")[0]

    @property
    def defaults(self) -> Mapping[str, Value]:
        """The default values of options."""
        return {name: value for name, value in self.options.items() if name not in self.choices}

    @property
    def model_list(self) -> str:
        """The models of this layout, for messages."""
        return " and ".join(self.models) or "every model"
