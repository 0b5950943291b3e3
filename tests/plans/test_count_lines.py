"""The table of lines in the README is the one that the script counts."""

from __future__ import annotations

from tests.plans.count_lines import EXAMPLES, ROOT, counts, plan_lines, readme_table, script_lines, table


def test_the_readme_states_the_lines_that_are_counted_now() -> None:
    assert readme_table((ROOT / "README.md").read_text(encoding="utf-8")) == table()


def test_comments_and_blank_lines_of_a_plan_are_not_counted() -> None:
    assert plan_lines("# what it does\n\ninputs: [a]\n  # why\noutput: b\n") == 2


def test_docstrings_comments_and_blank_lines_of_a_script_are_not_counted() -> None:
    assert script_lines('"""Docs,\nof two lines."""\n\nimport sys  # why\n# how\nsys.exit(\n    0\n)\n') == 4


def test_a_string_that_is_no_docstring_is_counted() -> None:
    assert script_lines('text = """a\nb"""\n') == 2


def test_every_plan_is_shorter_than_its_script() -> None:
    assert all(plan < script for plan, script in map(counts, EXAMPLES))
