"""Proof that a layout is a bijection on names and that its shapes close, for a config; and what it does not restore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.layout.bind import BoundLayout, bind, shapes_close
from brainsurgery_jax.layout.expressions import Config, Value
from brainsurgery_jax.layout.model import Layout


class Proof(NamedTuple):
    """The result for one choice of options: the number of tensors on either side, lossy rules, mistakes."""

    layout: Layout
    options: Mapping[str, Value]
    hf: int
    target: int
    lossy: tuple[str, ...]
    dropped: tuple[str, ...]
    problems: tuple[Diagnostic, ...]

    @property
    def holds(self) -> bool:
        """Whether there are no mistakes."""
        return not self.problems


def prove(layout: Layout, config: Config, options: Mapping[str, Value] | None = None) -> Proof:
    """Check a layout for a config. A mistake in the layout is a problem of the proof; it is not raised."""
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


def _open(bound: BoundLayout) -> Iterator[Diagnostic]:
    for pair in bound.pairs:
        if not shapes_close(pair):
            message = f"the ops and their inverse do not restore the shape {list(pair.hf_shapes[0])} of '{pair.hf[0]}'"
            yield Diagnostic("layout-shape", message, pair.rule.span)
