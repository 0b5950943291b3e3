"""`recipes`: the plans of the package, as a table, as a page, as JSON."""

from __future__ import annotations

from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.plan.recipes import PREFIX, find_recipe, recipe_names
from brainsurgery_jax.plan.searching import search_names
from brainsurgery_jax.rendering.data import record_data
from brainsurgery_jax.reports.recipes import report_recipe, report_recipes


def recipes(name: str | None, *, json: bool) -> None:
    """Print the table of all recipes, the page of one, or the table of those that a search finds. Raises PlanError if
    there is none."""
    if name is None:
        report = report_recipes([find_recipe(each) for each in recipe_names()])
    else:
        try:
            report = report_recipe(find_recipe(name.removeprefix(PREFIX)))
        except PlanError:
            found = search_names(name, {each: "\n".join(find_recipe(each).about) for each in recipe_names()})
            if not found:
                raise
            report = report_recipes([find_recipe(each) for each in found])
    if json:
        show.json(**record_data(report))
    else:
        show.report(report)
