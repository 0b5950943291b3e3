"""Every plan of `plans/` audited: what sees planted errors without its asserts, with them, and with those suggested."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import brainsurgery_jax as bs
from brainsurgery_jax.auditing.audit import Planted, audit
from brainsurgery_jax.auditing.cases import from_plan
from brainsurgery_jax.auditing.runner import Level
from tests.plans.recipe_inputs import INPUTS

EACH = 2
"""Errors of each sort that are planted, at most."""


class Row(NamedTuple):
    """Errors that change something: how many were planted, and seen by `check` and the run alone, by the plan with its
    asserts, and with those that `audit` suggests."""

    planted: int = 0
    alone: int = 0
    plan: int = 0
    suggested: int = 0

    def plus(self, other: Row) -> Row:
        """The sums."""
        return Row(*map(sum, zip(self, other, strict=True)))

    def line(self, name: str) -> str:
        """A row of a table of Markdown."""
        return f"| {name} | {' | '.join(map(str, self))} |"


def sweep(name: str) -> Mapping[str, Row]:
    """The rows of a recipe, by class of errors."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in INPUTS[name](Path(folder)).items()}
        plan = bs.load(f"recipe:{name}", **settings)
        bare = {each.what for each in audit(_strip(plan), each=EACH, suggestions=False).seen}
        found = audit(plan, each=EACH)
        # Steps have other numbers without the asserts before them: what was done to them is compared.
        own, rest = {each.what for each in found.seen}, found.helped
        told = {_untold(what) for what in bare}
        by_kind: dict[str, Row] = {}
        for each in _counted(found.planted):
            seen = each.what in own
            row = Row(1, int(seen and _untold(each.what) in told), int(seen), int(seen or each.what in rest))
            by_kind[each.kind] = by_kind.get(each.kind, Row()).plus(row)
        return by_kind


def _counted(planted: Iterable[Planted]) -> list[Planted]:
    return [each for each in planted if each.level is not Level.EQUIVALENT]


def _untold(what: str) -> str:
    """What was planted, without the number of the step."""
    head, _, rest = what.partition(" ")
    return rest.lstrip("0123456789") if head == "step" else what


def _strip(plan: bs.Plan) -> bs.Plan:
    """The plan without its asserts."""
    case = from_plan(plan, {})
    outputs = tuple({k: v for k, v in o.items() if k != "asserts"} if isinstance(o, dict) else o for o in case.outputs)
    steps = tuple(step for step in case.steps if "assert" not in step)
    return case._replace(steps=steps, outputs=outputs).plan()


def total(rows: Iterable[Row]) -> Row:
    """The sums of rows."""
    found = Row()
    for row in rows:
        found = found.plus(row)
    return found


HEADS = "| {} | planted | without asserts | with its asserts | with those suggested |\n|---|---:|---:|---:|---:|"


def tables(found: Mapping[str, Mapping[str, Row]]) -> str:
    """Two tables of Markdown: by class of errors, and by plan."""
    kinds: dict[str, Row] = {}
    for rows in found.values():
        for kind, row in rows.items():
            kinds[kind] = kinds.get(kind, Row()).plus(row)
    everything = total(kinds.values()).line("**all**")
    by_kind = [HEADS.format("class"), *(row.line(kind) for kind, row in sorted(kinds.items())), everything]
    by_plan = [HEADS.format("plan"), *(total(rows.values()).line(name) for name, rows in found.items()), everything]
    return "\n".join([*by_kind, "", *by_plan])


def sweep_all() -> Mapping[str, Mapping[str, Row]]:
    """The rows of all recipes."""
    logging.disable(logging.ERROR)
    found: dict[str, Mapping[str, Row]] = {}
    for name in sorted(INPUTS):
        if "out" in _names(name):
            found[name] = sweep(name)
            print(total(found[name].values()).line(name), flush=True)
    return found


def _names(name: str) -> set[str]:
    """The variables of a recipe: one that writes nothing has nothing to compare."""
    from brainsurgery_jax.plan.recipes import find_recipe

    return set(find_recipe(name).variables)
