"""`recipes`: the plans of the package, as a table, as a page, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from brainsurgery_jax.cli import show
from brainsurgery_jax.plan.declarations import Variable
from brainsurgery_jax.plan.recipes import PREFIX, PlanRecipe, find_recipe, recipe_names


def recipes(name: str | None, *, json: bool) -> None:
    """Print the table of all recipes, or the page of one. Raises PlanError for one that there is not."""
    if name is not None:
        recipe = find_recipe(name.removeprefix(PREFIX))
        if json:
            show.json(**_as_json(recipe))
        else:
            show.result("\n".join(_page(recipe)))
        return
    every = [find_recipe(each) for each in recipe_names()]
    if json:
        show.json(recipes=list(map(_as_json, every)))
    else:
        width = max(len(recipe.name) for recipe in every)
        lines = [line for r in every for line in show.hanging(f"{r.name.ljust(width)}  ", r.summary)]
        show.result("\n".join([*lines, "", "brainsurgery-jax recipes NAME describes one."]))


def _page(recipe: PlanRecipe) -> Iterator[str]:
    yield recipe.name
    yield ""
    yield from recipe.about
    if recipe.variables:
        yield from ("", "variables")
        width = max(map(len, recipe.variables))
        for variable in recipe.variables.values():
            yield from show.hanging(f"  {variable.name.ljust(width)}  ", _in_words(variable))
    yield ""
    yield from recipe.plan.splitlines()


def _in_words(variable: Variable) -> str:
    default = "required" if variable.default is None else f"default {variable.default.text}"
    return f"{variable.type}, {default}" + (f": {variable.help}" if variable.help else "")


def _as_json(recipe: PlanRecipe) -> dict[str, Any]:
    variables = [
        {
            "name": v.name,
            "type": v.type,
            "required": v.default is None,
            "default": None if v.default is None else v.default.value,
            "help": v.help,
        }
        for v in recipe.variables.values()
    ]
    return {"name": recipe.name, "about": "\n".join(recipe.about), "variables": variables, "plan": recipe.plan}
