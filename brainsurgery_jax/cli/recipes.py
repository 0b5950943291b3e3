"""`recipes`: the plans of the package, as a table, as a page, as JSON."""

from __future__ import annotations

from brainsurgery_jax.cli import show
from brainsurgery_jax.plan.recipes import PREFIX, find_recipe, recipe_names
from brainsurgery_jax.rendering.data import record_data
from brainsurgery_jax.reports.recipes import report_recipe, report_recipes


def recipes(name: str | None, *, json: bool) -> None:
    """Print the table of all recipes, or the page of one. Raises PlanError for one that there is not."""
    if name is not None:
        report = report_recipe(find_recipe(name.removeprefix(PREFIX)))
    else:
        report = report_recipes([find_recipe(each) for each in recipe_names()])
    if json:
        show.json(**record_data(report))
    else:
        show.report(report)
