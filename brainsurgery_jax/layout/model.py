"""A layout as data: what its file says, checked and typed, with the place of every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Span
from brainsurgery_jax.layout.expressions import Expression, Value
from brainsurgery_jax.layout.templates import Template


@dataclass(frozen=True, slots=True)
class OpUse:
    """An op of a rule with its arguments, as the table in `ops` reads them."""

    name: str
    args: Any
    span: Span


@dataclass(frozen=True, slots=True)
class Condition:
    """A rule is in force `when` a formula holds, or unless it does."""

    formula: Expression
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Tensors on the one side, tensors on the other, and the ops that lead there and back.

    `integer`: they are buffers of whole numbers, no weights.
    """

    hf: tuple[Template, ...]
    to: tuple[Template, ...]
    shapes: tuple[tuple[Expression, ...], ...]
    ops: tuple[OpUse, ...]
    span: Span
    ranges: Mapping[str, Expression] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    optional: bool = False
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Tensors that only a Hugging Face checkpoint may hold, and that nothing needs."""

    names: tuple[Template, ...]
    ranges: Mapping[str, Expression]
    conditions: tuple[Condition, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Tie:
    """A tensor that may be there a second time under the name `copy`."""

    copy: Template
    original: Template
    conditions: tuple[Condition, ...]
    span: Span


class Choice(NamedTuple):
    """What settles an option that changes numbers: the value of the first condition that holds. If none does, the user
    must say, and `ask` tells what it is about."""

    known: tuple[tuple[Condition, Value], ...]
    ask: str


class Adapters(NamedTuple):
    """How the library keeps the factors of LoRA: below which prefix, under which last key, and whether all axes of the
    inputs (or the outputs) are one in them."""

    prefix: str = ""
    leaf: str = ""
    flat: bool = False


NO_ADAPTERS = Adapters()


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A layout file. `models` empty: it is for every model. `rest`: what no rule names keeps its name.
    `file` is its path, if it is no layout of ours.

    `choices` are the options that have no default; in `options` stands a value of their kind.
    `bases` are the texts that `{base}` may stand for on the Hugging Face side; the first is an option's default.
    """

    name: str
    doc: str
    source: str
    format: str
    format_options: Mapping[str, Any]
    prefix: str
    models: tuple[str, ...]
    places: tuple[str, ...]
    dims: Mapping[str, tuple[Expression, ...]]
    options: Mapping[str, Value]
    ranges: Mapping[str, Expression]
    bases: tuple[str, ...]
    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...]
    ties: tuple[Tie, ...]
    rest: bool
    example: Mapping[str, Any]
    span: Span
    file: str = ""
    adapters: Adapters = NO_ADAPTERS
    choices: Mapping[str, Choice] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The library that it is for: the first word of its name."""
        return self.name.partition("-")[0]

    @property
    def defaults(self) -> Mapping[str, Value]:
        """The values of the options that nobody has to give."""
        return {name: value for name, value in self.options.items() if name not in self.choices}

    @property
    def models_told(self) -> str:
        """The models that it is for, as messages tell them."""
        return " and ".join(self.models) or "every model"
