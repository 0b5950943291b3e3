"""All texts with a mistake."""

from __future__ import annotations

from tests.hints import texts_of_layouts, texts_of_names, texts_of_plans, texts_of_yaml

ROWS = [*texts_of_plans.ROWS, *texts_of_names.ROWS, *texts_of_layouts.ROWS, *texts_of_yaml.ROWS]
