"""The recipes of the package, and what one of them does and takes."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax.documents import Column, Entry, Grid, Hanging, Parts, Record, Text, show_only
from brainsurgery_jax.plan.declarations import Variable
from brainsurgery_jax.plan.recipes import PlanRecipe

_COLUMNS = tuple(Column(key, "") for key in ("name", "type", "required", "default", "help"))


def report_recipes(every: Sequence[PlanRecipe]) -> Record:
    """All recipes, with what each does in a line."""
    width = max(len(recipe.name) for recipe in every)
    lines = (Hanging(f"{recipe.name.ljust(width)}  ", recipe.summary) for recipe in every)
    remark = Text("\nbrainsurgery-jax recipes NAME describes one.")
    return Record((Entry("recipes", [report_recipe(recipe) for recipe in every], Parts((*lines, remark))),))


def report_recipe(recipe: PlanRecipe) -> Record:
    """What a recipe does, its variables, and its plan."""
    variables = tuple(recipe.variables.values())
    width = max(map(len, recipe.variables), default=0)
    lines = (Hanging(f"  {variable.name.ljust(width)}  ", _in_words(variable)) for variable in variables)
    rows = tuple(
        (v.name, v.type, v.default is None, None if v.default is None else v.default.value, v.help) for v in variables
    )
    about = "\n".join(recipe.about)
    return Record((
        Entry("name", recipe.name, Text(f"{recipe.name}\n")),
        Entry("about", about, Text(about) if recipe.about else None),
        Entry("variables", Grid(_COLUMNS, rows), Parts((Text("\nvariables"), *lines)) if rows else None),
        *show_only(Text("")),
        Entry("plan", recipe.plan, Text("\n".join(recipe.plan.splitlines())) if recipe.plan else None),
    ))  # fmt: skip


def _in_words(variable: Variable) -> str:
    default = "required" if variable.default is None else f"default {variable.default.text}"
    return f"{variable.type}, {default}" + (f": {variable.help}" if variable.help else "")
