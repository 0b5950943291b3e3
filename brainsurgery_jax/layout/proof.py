"""What holds of a layout for a config: a bijection on names, shapes that close, and what cannot come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.layout.bind import Bound, bind, shapes_close
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.model import Layout


class Proof(NamedTuple):
    """What was shown, for one choice of options: tensors on either side, rules that lose bits, mistakes."""

    layout: Layout
    options: Mapping[str, Value]
    hf: int
    target: int
    lossy: tuple[str, ...]
    dropped: tuple[str, ...]
    problems: tuple[Diagnostic, ...]

    @property
    def holds(self) -> bool:
        """Whether there is no mistake."""
        return not self.problems


def prove(layout: Layout, config: Mapping[str, Any], options: Mapping[str, Value] | None = None) -> Proof:
    """The proof of a layout for a config. Never raises for a mistake in the layout."""
    given = {**layout.options, **(options or {})}
    try:
        bound = bind(layout, config, options)
    except PlanError as bad:
        return Proof(layout, given, 0, 0, (), (), bad.diagnostics)
    hf, target = (sum(len(getattr(p, side)) for p in bound.pairs) for side in ("hf", "target"))
    lossy = tuple(f"{rule.hf[0].text}: {why}" for rule, why in bound.lossy())
    dropped = tuple(f"{drop.names[0].text}: dropped if present, not restored" for drop in layout.drops)
    return Proof(layout, given, hf, target, lossy, dropped, tuple(_open(bound)))


def proofs(layout: Layout) -> Iterator[Proof]:
    """The proofs for the layout's own example, for every choice of its switches."""
    switches = [name for name, value in layout.options.items() if isinstance(value, bool)]
    for values in product((True, False), repeat=len(switches)):
        yield prove(layout, layout.example, dict(zip(switches, values, strict=True)))


def _open(bound: Bound) -> Iterator[Diagnostic]:
    for pair in bound.pairs:
        if not shapes_close(pair):
            message = f"the way there and back of '{pair.hf[0]}' does not end in {list(pair.hf_shapes[0])}"
            yield Diagnostic("layout-shape", message, pair.rule.span)
