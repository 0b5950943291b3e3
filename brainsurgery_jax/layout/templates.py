"""Names of tensors with formulas in braces: `model.layers.{i}.mlp.experts.{2*e+1}.weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.expressions import SizeExpression, Value, parse_expression

_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class NameTemplate:
    """A name with formulas in it. A formula that is a single name may also be a text."""

    text: str
    parts: tuple[str | SizeExpression, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names that its formulas use."""
        return frozenset().union(*(p.names for p in self.parts if isinstance(p, SizeExpression)))

    def fill(self, names: Mapping[str, Value]) -> str:
        """The name, with its formulas evaluated."""
        return "".join(p if isinstance(p, str) else _fill(p, names) for p in self.parts)


def _fill(part: SizeExpression, names: Mapping[str, Value]) -> str:
    if part.names == {part.text} and isinstance(text := names[part.text], str):
        return text
    return str(part.integer(names))


def parse_template(text: str) -> NameTemplate:
    """Parse a template. Raises Refusal."""
    pieces = _BRACES.split(text)
    if any("{" in literal or "}" in literal for literal in pieces[::2]):
        raise Refusal("layout-name", f"the braces of '{text}' do not match", hint="Write an index as `{i}`.")
    parts = [parse_expression(p) if at % 2 else p for at, p in enumerate(pieces)]
    return NameTemplate(text, tuple(p for p in parts if p != ""))
