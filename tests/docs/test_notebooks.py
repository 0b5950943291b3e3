"""The notebooks of the documentation run from start to end, and give what they show."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.docs.notebooks import PATHS, execute, told


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_it_shows(path: Path):
    shown = nbformat.read(path, as_version=4)
    assert told(shown), "it shows nothing"
    assert told(execute(path)) == told(shown), "`make docs` writes what came out; read the difference"


def test_there_are_notebooks():
    assert {path.stem for path in PATHS} == {"merge-and-compare", "nnx-under-jit", "low-rank-study"}
