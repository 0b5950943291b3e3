"""Every entry of the specification's tables has a plan that is accepted and one that is refused.

A new entry goes into the list here, and its rows into the module of its family; `row.py` tells how a row reads.
"""

from __future__ import annotations

import pytest

from tests.compat import (
    test_arithmetic,
    test_asserts,
    test_control,
    test_load_save,
    test_making,
    test_naming,
    test_phlora,
    test_plan_file,
    test_references,
    test_reports,
    test_session,
    test_shapes,
    test_torch_files,
)

TENSOR_OPS = [
    "copy", "move", "delete", "assign", "add", "subtract", "multiply", "add_", "subtract_", "matmul", "scale", "scale_",
    "clamp", "clamp_", "cast", "cast_", "reshape", "reshape_", "permute", "fill", "fill_", "zeroes", "ones", "rand",
    "concat", "split", "phlora", "phlora_",
]  # fmt: skip
ASSERTS = [
    "exists", "count", "shape", "dimensions", "dtype", "equal", "iszero", "reads", "writes", "all", "any", "not",
]  # fmt: skip
CONTROL = ["dump", "diff", "help", "prefixes", "set", "execute", "load", "save", "exit"]
SECTIONS = ["1.1", "1.2", "1.3", "1.4", "1.5", "2.1", "2.3", "2.4", "2.5", "2.6", "2.7"]
ENTRIES = [*TENSOR_OPS, *(f"assert {name}" for name in ASSERTS), *CONTROL, *SECTIONS]

MODULES = (
    test_arithmetic, test_asserts, test_control, test_load_save, test_making, test_naming, test_phlora, test_plan_file,
    test_references, test_reports, test_session, test_shapes, test_torch_files,
)  # fmt: skip
ROWS = [row for module in MODULES for row in module.ROWS]
DRAWN = {"rand", "phlora"}
"""Entries whose results no row can spell: tests of their own, beside the rows, look at what comes out."""


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_has_a_plan_that_is_accepted(entry: str):
    assert entry in DRAWN or any(row.entry == entry and not row.code for row in ROWS)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_has_a_plan_that_is_refused(entry: str):
    assert any(row.entry == entry and row.code for row in ROWS)


def test_every_tensor_op_is_seen_to_change_tensors():
    changing = {row.entry for row in ROWS if row.gives and not row.code}
    assert set(TENSOR_OPS) - DRAWN <= changing


def test_every_row_is_of_a_known_entry_and_says_a_rule_of_its_own():
    named = [str(row) for row in ROWS]
    assert {row.entry for row in ROWS} <= {*ENTRIES, "2.2"}
    assert len(set(named)) == len(named)
