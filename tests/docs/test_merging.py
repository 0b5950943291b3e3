"""The page on merging has the methods that there are, and all their parameters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from brainsurgery_jax.merging.table import METHODS
from brainsurgery_jax.ops.merge import MethodWord
from tests.docs.merge_table import parameters, table

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_that_of_their_records():
    assert table() in PAGE


def test_every_parameter_is_described():
    assert parameters() in PAGE


def test_the_op_takes_the_methods_that_there_are():
    assert list(get_args(get_args(MethodWord)[0])) == list(METHODS)


def test_every_method_names_its_source():
    without = [m.name for m in METHODS.values() if not m.reference]
    assert without == ["passthrough"]
    assert all(re.match(r"https://|[A-Z]\w+, ", m.reference) for m in METHODS.values() if m.reference)
