"""What a hint says about a text, done as it says, mends the text and harms nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.hints.rows import M, Row, found
from tests.hints.texts import ROWS


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_text_that_is_mended_as_the_hint_says_does_what_was_meant(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mistake = found(row)
    assert mistake.code == row.code
    assert (row.says or row.new) in mistake.hint
    before = {path: path.read_bytes() for path in Path().glob("*.safetensors")}
    made = row.follow(row.mended)
    wanted = {**M, **row.expect}
    assert set(made) == {name for name, array in wanted.items() if array is not None}
    for name, array in wanted.items():
        if array is not None:
            assert (made[name].dtype, made[name].tobytes()) == (array.dtype, np.asarray(array).tobytes()), name
    assert {path: path.read_bytes() for path in before} == before
