"""The page of ops is what the registry tells."""

from __future__ import annotations

from tests.docs import recipe_page, reference
from tests.docs.write import ROOT


def test_the_committed_page_of_ops_is_the_one_that_the_registry_gives() -> None:
    committed = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    assert reference.page() == committed, "`make docs` writes it anew"


def test_the_committed_table_of_modes_is_the_one_that_the_tests_try() -> None:
    committed = (ROOT / "docs" / "jax.md").read_text(encoding="utf-8")
    assert reference.MODES_BEGIN in committed
    assert reference.with_modes(committed) == committed, "`make docs` writes it anew"


def test_every_op_and_operator_has_a_section_with_an_example() -> None:
    told = reference.told()
    parts = reference.page().split("\n### ")[1:]
    wanted = {*told["ops"], *(f"assert.{name}" for name in told["asserts"])}
    assert {part.partition("\n")[0] for part in parts} == wanted
    assert [part.partition("\n")[0] for part in parts if "```yaml\n- " not in part] == []


def test_the_page_of_recipes_is_the_one_that_is_generated_now() -> None:
    committed = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert committed == recipe_page.page(), "run `make docs`"
