"""The table of docs/structure.md on how far results agree says what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure.agreement import ROWS, AgreementRow, documented, measure

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations


def test_every_row_is_in_the_page() -> None:
    assert list(documented()) == [row.step for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.step)
def test_a_model_is_as_near_to_what_it_was_as_the_page_says(row: AgreementRow, tmp_path: Path) -> None:
    """Within a factor of ten: other machines round otherwise."""
    found = measure(row, row.models[-1], tmp_path)
    assert found.largest > 1
    assert found.difference <= 10 * documented()[row.step] + 1e-6
