"""Spec 5: `assert` and its operators. `row.py` tells how a row reads.

An assert that holds leaves every tensor as it was; one that does not is refused with `assert-failed`.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, check
from tests.compat.row import accepted as _accepted
from tests.compat.row import refused as _refused

W = counting((4, 6))
T = {
    "w": W,
    "v": W + np.float32(1e-4),
    "z": np.zeros((2, 2), np.float32),
    "almost": np.array([0, 1e-7, -1e-7], np.float32),
    "nan": np.array([0, np.nan], np.float32),
    "inf": np.array([np.inf], np.float32),
    "half": W.astype(ml_dtypes.bfloat16),
    "minus": np.array([-0.0], np.float32),
    "plus": np.array([0.0], np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "h.0.b": counting((6,)),
    "h.1.b": counting((6,)),
    "s": np.array(1, np.float32),
}
TWO = {"a": {"x.w": W, "y.w": W * 2}, "b": {"x.w": W, "y.w": W * 2, "more": W}}


def holds(operator: str, rule: str, condition: str, tensors: dict = T) -> Row:
    """An assert that holds; all tensors are written as they were."""
    return _accepted(f"assert {operator}", rule, f"assert: {condition}", tensors, {})


def fails(operator: str, rule: str, condition: str, text: str, tensors: dict = T, late: bool = False) -> Row:
    """An assert that does not hold. `late`: only the values tell."""
    return _refused(f"assert {operator}", rule, f"assert: {condition}", tensors, "assert-failed", text, late=late)


def lacks(operator: str, condition: str) -> Row:
    """An assert about tensors of which there are none."""
    return _refused(
        f"assert {operator}", "nothing matches", f"assert: {condition}", T, "no-match", "no tensor matches 'none'"
    )


def wrong(operator: str, rule: str, condition: str, code: str, text: str, tensors: dict = T) -> Row:
    """An assert that makes no sense."""
    return _refused(f"assert {operator}", rule, f"assert: {condition}", tensors, code, text)


FORM = (
    wrong(
        "all", "exactly one operator", "{ exists: w, count: { of: w, is: 1 } }", "assert-form", "exactly one operator"
    ),
    wrong("all", "the payload is a mapping", "exists", "assert-form", "a mapping with exactly one operator"),
    wrong("all", "the operator must be known", "{ exist: w }", "assert-unknown", "unknown assert operator 'exist'"),
)

NAMES = (
    holds("exists", "something matches", r"{ exists: 'h\.\d\.b' }"),
    holds("exists", "the reference may be a list of tokens", "{ exists: [h, $i, b] }"),
    holds("exists", "a slice is read but not applied", "{ exists: 'w::[99]' }"),
    fails("exists", "nothing matches", "{ exists: 'x.*' }", "no tensor matches"),
    wrong("exists", "the slice must be one", "{ exists: 'w::[a]' }", "slice-syntax", "not a slice"),
    holds("count", "the number of matches", r"{ count: { of: 'h\..*', is: 2 } }"),
    fails("count", "another number", r"{ count: { of: 'h\..*', is: 3 } }", "2 tensors match .*, not 3"),
    wrong("count", "the number is an integer", "{ count: { of: w, is: '1' } }", "value-type", "expected an integer"),
    wrong("count", "`is` is required", "{ count: { of: w } }", "key-missing", "missing key 'is'"),
    wrong("count", "there are no other keys", "{ count: { of: w, is: 1, eps: 0 } }", "key-unknown", "'eps'"),
)  # fmt: skip

HEADERS = (
    holds("shape", "every match has the shape", r"{ shape: { of: 'h\..*', is: [6] } }"),
    holds("shape", "after slicing", "{ shape: { of: 'w::[0, 1:3]', is: [2] } }"),
    holds("shape", "a scalar has the empty shape", "{ shape: { of: s, is: [] } }"),
    fails("shape", "one match has another shape", "{ shape: { of: 'w|z', is: [4, 6] } }",
          r"'z' is \[2, 2\], not \[4, 6\]"),
    fails("shape", "-1 stands for nothing", "{ shape: { of: w, is: [4, -1] } }", r"not \[4, -1\]"),
    lacks("shape", "{ shape: { of: none, is: [1] } }"),
    wrong("shape", "sizes are integers", "{ shape: { of: w, is: ['4', 6] } }", "value-type", "expected an integer"),
    wrong("shape", "a slice must fit", "{ shape: { of: 'w::[9]', is: [6] } }", "slice-range", "index 9"),
    holds("dimensions", "the number of axes is within all bounds",
          "{ dimensions: { of: 'w|z', ge: 1, lt: 3, is: 2 } }"),
    holds("dimensions", "after slicing; null counts as left out", "{ dimensions: { of: 'w::[0]', is: 1, ge: ~ } }"),
    fails("dimensions", "one match has another number", "{ dimensions: { of: 'w|h.*', gt: 1 } }", "more than 1"),
    lacks("dimensions", "{ dimensions: { of: none, is: 1 } }"),
    wrong("dimensions", "at least one bound", "{ dimensions: { of: w } }", "bounds-missing", "at least one of"),
    wrong("dimensions", "bounds must not contradict", "{ dimensions: { of: w, ge: 3, le: 2 } }", "bounds-contradict",
          "ge: 3, le: 2"),
    wrong("dimensions", "one number has no strict side", "{ dimensions: { of: w, gt: 2, le: 2 } }",
          "bounds-contradict", "gt: 2, le: 2"),
    wrong("dimensions", "`is` lies within the others", "{ dimensions: { of: w, is: 1, ge: 2 } }", "bounds-contradict",
          "is: 1"),
    wrong("dimensions", "bounds are not negative", "{ dimensions: { of: w, ge: -1 } }", "value-type", "-1"),
    wrong("dimensions", "`at_least` is for counters alone", "{ dimensions: { of: w, at_least: 1 } }", "key-unknown",
          "unknown key 'at_least'"),
    holds("dtype", "every match has the dtype, whatever its spelling", r"{ dtype: { of: 'w|h\..*', is: fp32 } }"),
    fails("dtype", "one match has another dtype", "{ dtype: { of: 'w|half', is: float32 } }",
          "'half' is bfloat16, not float32"),
    lacks("dtype", "{ dtype: { of: none, is: float32 } }"),
    wrong("dtype", "the dtype must be known", "{ dtype: { of: w, is: real } }", "dtype-unknown",
          "unknown dtype 'real'"),
)  # fmt: skip

VALUES = (
    holds("equal", "bit for bit", r"{ equal: { left: 'h\.0\.b', right: 'h.1.b' } }"),
    holds("equal", "`right` is a template that the match of `left` fills",
          r"{ equal: { left: 'a::.+', right: 'b::\g<0>' } }",
          TWO),
    holds("equal", "slices on both sides", "{ equal: { left: 'w::[0]', right: 'h.0.b::[:6]' } }"),
    holds("equal", "zeros of both signs are equal", "{ equal: { left: plus, right: minus } }"),
    holds("equal", "empty tensors are equal", "{ equal: { left: empty, right: empty } }"),
    holds("equal", "within an absolute tolerance", "{ equal: { left: w, right: v, eps: 1.0e-3 } }"),
    fails("equal", "values differ", "{ equal: { left: w, right: v } }", "'w' differs in value", late=True),
    fails("equal", "values differ by more than the tolerance", "{ equal: { left: w, right: v, eps: 1.0e-5 } }",
          "by more than 1e-05", late=True),
    fails("equal", "NaN differs from NaN", "{ equal: { left: nan, right: nan } }", "differs", late=True),
    fails("equal", "NaN differs from NaN within any tolerance", "{ equal: { left: nan, right: nan, eps: 1 } }",
          "differs",
          late=True),
    fails("equal", "infinity is not near infinity", "{ equal: { left: inf, right: inf, eps: 1 } }", "differs",
          late=True),
    fails("equal", "shapes differ", "{ equal: { left: w, right: z, eps: 1 } }", r"f32\[4,6\].*f32\[2,2\]"),
    fails("equal", "dtypes differ", "{ equal: { left: w, right: half } }", r"f32\[4,6\].*bf16\[4,6\]"),
    fails("equal", "a right side is missing", r"{ equal: { left: '(w|z)', right: '\1x' } }", "no 'wx'"),
    fails("equal", "what only the left side has is missed", r"{ equal: { left: 'b::.+', right: 'a::\g<0>' } }",
          "no 'more' in 'a'", TWO),
    lacks("equal", "{ equal: { left: none, right: w } }"),
    fails("equal", "`right` is no pattern", "{ equal: { left: 'a::x.w', right: 'b::.*' } }", r"no '\.\*'", TWO),
    wrong("equal", "the tolerance is a number", "{ equal: { left: w, right: v, eps: '1' } }", "value-type", "'1'"),
    wrong("equal", "the tolerance is not negative", "{ equal: { left: w, right: v, eps: -1 } }", "value-type", "-1"),
    wrong("equal", "the tolerance is not a boolean", "{ equal: { left: w, right: v, eps: true } }", "value-type",
          "True"),
    holds("iszero", "all elements are zero", "{ iszero: 'z|minus|plus' }"),
    holds("iszero", "with a mapping, within a tolerance", "{ iszero: { of: 'z|almost', eps: 1.0e-6 } }"),
    holds("iszero", "after slicing", "{ iszero: 'w::[0, 0]' }"),
    holds("iszero", "an empty tensor is zero", "{ iszero: empty }"),
    fails("iszero", "an element is not", "{ iszero: almost }", "'almost' is not zero", late=True),
    fails("iszero", "NaN is not", "{ iszero: nan }", "'nan' is not zero", late=True),
    fails("iszero", "NaN is not within any tolerance", "{ iszero: { of: nan, eps: 9 } }", "within 9 of zero",
          late=True),
    lacks("iszero", "{ iszero: none }"),
)  # fmt: skip

COUNTERS = (
    *(row for operator, untouched in (("reads", 0), ("writes", 1)) for row in (
        holds(operator, "within all bounds", f"{{ {operator}: {{ of: '.*', is: {untouched}, ge: 0, le: 1 }} }}"),
        holds(operator, "`at_least` is `ge`, `at_most` is `le`",
              f"{{ {operator}: {{ of: w, at_least: 0, at_most: 1 }} }}"),
        holds(operator, "both spellings may agree", f"{{ {operator}: {{ of: w, le: 1, at_most: 1 }} }}"),
        fails(operator, "out of bounds", f"{{ {operator}: {{ of: w, gt: 5 }} }}", "more than 5"),
        lacks(operator, f"{{ {operator}: {{ of: none, ge: 0 }} }}"),
        wrong(operator, "at least one bound", f"{{ {operator}: {{ of: w }} }}", "bounds-missing", "at least one of"),
        wrong(operator, "both spellings must not differ", f"{{ {operator}: {{ of: w, ge: 1, at_least: 2 }} }}",
              "bounds-contradict", "at_least"),
    )),
)  # fmt: skip

COMBINED = (
    holds("all", "each holds", "{ all: [{ exists: w }, { shape: { of: w, is: [4, 6] } }] }"),
    fails("all", "one does not", "{ all: [{ exists: w }, { exists: none }] }", "no tensor matches '.*none'"),
    wrong("all", "the list is not empty", "{ all: [] }", "assert-form", "non-empty list"),
    wrong("all", "it takes a list", "{ all: { exists: w } }", "assert-form", "list"),
    holds("any", "one holds, at any depth",
          "{ any: [{ exists: none }, { all: [{ not: { exists: nil } }, { iszero: z }] }] }"),
    fails("any", "none does", "{ any: [{ exists: none }, { count: { of: w, is: 2 } }] }", "no tensor matches"),
    wrong("any", "the list is not empty", "{ any: [] }", "assert-form", "non-empty list"),
    holds("not", "the inner one fails", "{ not: { iszero: w } }"),
    holds("not", "no match, another shape and another dtype are failures",
          "{ all: [{ not: { exists: nil } }, { not: { shape: { of: w, is: [1] } } },"
          " { not: { dtype: { of: w, is: int8 } } }] }"),
    fails("not", "the inner one holds", "{ not: { exists: w } }", "'w' exists, and should not"),
    wrong("not", "it takes one assert, no list", "{ not: [{ exists: w }] }", "assert-form", "exactly one operator"),
    wrong("not", "the inner one is read as usual", "{ not: { shape: { of: w } } }", "key-missing", "missing key 'is'"),
)  # fmt: skip

ROWS = (*FORM, *NAMES, *HEADERS, *VALUES, *COUNTERS, *COMBINED)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_asserts(row: Row, here: Path):
    check(row)
