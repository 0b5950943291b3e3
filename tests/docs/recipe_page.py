"""The page of all recipes, from the plans of the package: `docs/recipes.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from brainsurgery_jax.plan.declarations import Variable
from brainsurgery_jax.plan.recipes import PlanRecipe, find_recipe, recipe_names

HEAD = """\
# Recipes

<!-- Made from the plans in `plans/` by `make docs`. Change their comments, then run it. -->

Plans that are installed with the package and run by their names. `brainsurgery-jax recipes` lists them, and
`brainsurgery-jax recipes NAME` prints one with its plan. `check` and `explain` take them as `run` does, any part can be
overridden as in [other plans](language.md#variables-overrides-seed), and `execute: {recipe: {NAME: {VARIABLE: value}}}`
runs one within a plan.
"""


def page() -> str:
    """The text of `docs/recipes.md`."""
    every = [find_recipe(name) for name in recipe_names()]
    listed = "".join(f"| [`{r.name}`](#{r.name}) | {r.summary} |\n" for r in every)
    sections = "".join("\n".join(("", *_section(recipe), "")) for recipe in every)
    return f"{HEAD}\n| recipe | |\n|---|---|\n{listed}{sections}"


def _section(recipe: PlanRecipe) -> Iterator[str]:
    yield f"## {recipe.name}"
    yield ""
    yield from _fence_commands(recipe.about)
    yield ""
    yield from ("| variable | type | default | |", "|---|---|---|---|")
    yield from map(_row, recipe.variables.values())


def _fence_commands(lines: Iterable[str]) -> Iterator[str]:
    """The comment, its indented command as a block of code."""
    for line in lines:
        yield from ("```", line.strip(), "```") if line.startswith("  ") else (line,)


def _row(variable: Variable) -> str:
    default = "required" if variable.default is None else f"`{variable.default.text}`"
    return f"| `{variable.name}` | {variable.type} | {default} | {variable.help} |"
