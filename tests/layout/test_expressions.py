"""Formulas and names in layout files."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.config import Fields
from brainsurgery_jax.layout.expressions import bfloat16, parse_expression
from brainsurgery_jax.layout.templates import parse_template

SIZES = {"D": 32, "N": 4, "L": 7, "tied": False, "model": "qwen2"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("D // N * 3", 24),
        ("L - L % 3", 6),
        ("-1 + L", 6),
        ("sqrt(D // 2)", 4.0),
        ("max(N, L)", 7),
        ("model == 'qwen2' and not tied", True),
        ("tied or L >= 7", True),
        ("D == 31", False),
        ("0.5", 0.5),
    ],
)
def test_a_formula_has_the_value_that_python_gives_it(text: str, value: object) -> None:
    assert parse_expression(text).value(SIZES) == value


def test_a_formula_tells_the_names_that_it_asks_for() -> None:
    assert parse_expression("sqrt(D) * (N + 2)").names == {"D", "N"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("D / 2", "'D / 2' is not allowed in the formula 'D / 2'"),
        ("__import__('os')", "is not allowed"),
        ("f(D).real", "is not allowed"),
        ("[x for x in D]", "is not allowed"),
        ("D **", "is not a formula"),
        ("a < b < c", "is not allowed"),
        ("", "is not a formula"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refusal, match=why.replace("(", r"\(").replace("[", r"\[")):
        parse_expression(text)


def test_sizes_are_divided_by_two_slashes_says_the_hint() -> None:
    with pytest.raises(Refusal) as caught:
        parse_expression("D / 2")
    assert caught.value.hint == "Divide sizes with `//`."


def test_a_formula_without_a_value_names_what_it_was_given() -> None:
    with pytest.raises(Refusal, match=r"'D // L' has no value for D = 32, L = 0"):
        parse_expression("D // L").value({"D": 32, "L": 0})


def test_a_size_is_a_whole_number() -> None:
    with pytest.raises(Refusal, match=r"'N - D' must be a whole number of at least 0, but is -28 \(D = 32, N = 4\)"):
        parse_expression("N - D").integer(SIZES)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**99), max_value=2.0**99))
def test_bfloat16_rounds_as_the_dtype_does(x: float) -> None:
    assert bfloat16(x) == float(np.float32(x).astype(ml_dtypes.bfloat16))


def test_a_name_is_filled_by_its_formulas() -> None:
    name = parse_template("{base}layers.{2*j+1}.w")
    assert name.fill({"base": "model.", "j": 3}) == "model.layers.7.w"
    assert name.names == {"base", "j"}


def test_braces_of_a_name_pair_up() -> None:
    with pytest.raises(Refusal, match=r"the braces of 'layers.\{i.w' do not match"):
        parse_template("layers.{i.w")


def test_a_field_of_a_part_and_a_number_of_entries_are_values() -> None:
    fields = Fields({"vision_config": {"width": 6, "none": None}, "id2label": {"0": "cat", "1": "dog"}}, ())
    assert parse_expression("vision_config.width * len(id2label)").value(fields) == 12
    assert "vision_config.none" not in fields
