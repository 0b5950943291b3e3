"""The table in the documentation is the one that is tried."""

from __future__ import annotations

from tests.docs.write import ROOT
from tests.trees.states import JOBS, STATES


def table() -> str:
    """The states and jobs that orbax judges, as Markdown."""
    rows = [["state", *JOBS], ["---"] * (len(JOBS) + 1)]
    rows += [[name, *("yes" if job in row.jobs else "" for job in JOBS)] for name, row in STATES.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_page_lists_what_is_tried() -> None:
    page = (ROOT / "docs" / "trees.md").read_text(encoding="utf-8")
    assert page.partition("<!-- table -->\n")[2].partition("<!-- end of table -->")[0] == f"\n{table()}\n"
