"""The mix that a tensor of the result is computed from: one model scaled, or an expression over several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.importers.config_reader import FORM
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.mergekit_config import Config, MergeSlice, MergeSource


class Mix(NamedTuple):
    """Sources and an expression over their aliases. `by`: the factor of the only source."""

    sources: tuple[MergeSource, ...]
    expr: str
    by: float | None = None


def mix_of(config: Config, models: Mapping[str, Model], piece: MergeSlice, name: str, depth: float) -> Mix:
    """The mix for the tensor with a name, at a relative depth from 0 to 1. Raises PlanError."""
    mixing = _Mixing(config, models, piece, name, depth)
    return {"linear": mixing.linear, "task_arithmetic": mixing.task, "passthrough": mixing.passthrough}[config.method]()


class _Mixing(NamedTuple):
    config: Config
    models: Mapping[str, Model]
    piece: MergeSlice
    name: str
    depth: float

    def value(self, parameter: str, default: float, source: MergeSource | None = None) -> float:
        found = self.config.value(parameter, self.piece, source, self.name, self.depth)
        return _rounded(default if found is None else found)

    def weight(self, source: MergeSource) -> float:
        return _rounded(self.config.needed("weight", self.piece, source, self.name, self.depth))

    def alias(self, source: MergeSource) -> str:
        return self.models[source.model].alias

    def passthrough(self) -> Mix:
        match self.piece.sources:
            case (source,):
                return Mix((source,), self.alias(source), self.value("scale", 1.0, source))
        message = f"passthrough takes one model for each layer, got {len(self.piece.sources)}"
        raise refuse(message, self.piece.sources[1].span, "Give each model its own slice.", FORM)

    def linear(self) -> Mix:
        factors = [(source, self.weight(source)) for source in self.piece.sources]
        total = math.fsum(factor for _, factor in factors)
        normalize = bool(self.value("normalize", 1.0))
        if normalize and abs(total) <= 1e-12 * math.fsum(abs(factor) for _, factor in factors):
            where = self.piece.sources[0].span
            hint = "Give weights that do not add up to 0, or `normalize: false` for their sum."
            raise refuse("the weights add up to 0, but normalizing divides by their sum", where, hint, FORM)
        used = [(source, factor) for source, factor in factors if factor] or factors[:1]
        if normalize and len({factor for _, factor in used}) == 1:
            used, total = [(source, 1.0) for source, _ in used], float(len(used))
        divisor = total if normalize and not math.isclose(total, 1, abs_tol=1e-12) else 1.0
        if len(used) == 1 and divisor == 1:
            return Mix((used[0][0],), self.alias(used[0][0]), used[0][1])
        expr = _sum([(self.alias(source), factor) for source, factor in used])
        return Mix(tuple(source for source, _ in used), expr if divisor == 1 else f"({expr}) / {_number(divisor)}")

    def task(self) -> Mix:
        base = self.base()
        deltas = [source for source in self.piece.sources if source.model != self.config.base]
        factors = [(source, self.weight(source)) for source in deltas]
        used = [(source, factor) for source, factor in factors if factor]
        outer = self.value("lambda", 1.0)
        if not used or not outer:
            return Mix((base,), self.alias(base), 1.0)
        total = math.fsum(factor for _, factor in factors)
        if not self.value("normalize", 0.0) or abs(total) < 1e-8:
            total = 1.0
        expr = _sum([(f"({self.alias(source)} - base)", factor) for source, factor in used])
        if outer != 1 or total != 1:
            expr = f"({expr})" if len(used) > 1 else expr
            expr = f"{_number(outer)}*{expr}" if outer != 1 else expr
            expr = f"{expr} / {_number(total)}" if total != 1 else expr
        joined = f"base - {expr[1:]}" if expr.startswith("-") else f"base + {expr}"
        return Mix((base, *(source for source, _ in used)), joined)

    def base(self) -> MergeSource:
        """The base model among the sources. Whole models need not list it."""
        found = next((source for source in self.piece.sources if source.model == self.config.base), None)
        if found is None and self.config.sliced:
            where = self.piece.sources[0].span
            raise refuse("the base model is not a source of this slice, so its layers are unknown", where,
                          "Add it to the sources, with its layer_range.", FORM)  # fmt: skip
        assert self.config.base is not None
        return found or MergeSource(self.config.base, self.config.spans["base_model"], {})


def _sum(terms: Sequence[tuple[str, float]]) -> str:
    text = ""
    for at, (word, factor) in enumerate(terms):
        size = word if abs(factor) == 1 else f"{_number(abs(factor))}*{word}"
        sign = ("-" if factor < 0 else "") if at == 0 else (" - " if factor < 0 else " + ")
        text += sign + size
    return text


def _rounded(value: float) -> float:
    """Without the rounding noise of interpolation; far finer than any dtype."""
    return float(f"{value:.12g}")


def _number(value: float) -> str:
    return f"{value:.12g}"
