"""Groups of names: which belong together, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainsurgery_jax.select import RefError, compile_pattern, gather, scatter

EACH = compile_pattern(r"h\.(?P<i>\d+)\.(?P<e>\d+)")


def names(layers: int, count: int) -> list[str]:
    return [f"h.{i}.{e}" for i in range(layers) for e in range(count)]


@settings(max_examples=100)
@given(layers=st.integers(1, 12), count=st.integers(1, 12), data=st.data())
def test_every_name_is_in_one_group_in_numeric_order(layers: int, count: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(names(layers, count)))
    groups = gather(EACH, EACH.matches(shuffled), "e", r"x.\g<i>")
    assert {g.target: list(g.names) for g in groups} == {
        f"x.{i}": [f"h.{i}.{e}" for e in range(count)] for i in range(layers)
    }


@settings(max_examples=100)
@given(layers=st.integers(1, 5), count=st.integers(1, 12))
def test_parts_are_named_as_groups_are_found(layers: int, count: int) -> None:
    whole = compile_pattern(r"x\.(\d+)")
    matches = whole.matches([f"x.{i}" for i in range(layers)])
    made = scatter(whole, matches, "e", r"h.\1.${e}", [count] * layers)
    assert [name for parts in made for name in parts] == names(layers, count)


def test_groups_come_in_the_order_of_their_targets() -> None:
    found = gather(EACH, EACH.matches(names(3, 1)), "e", "${i}")
    assert [g.target for g in found] == ["0", "1", "2"]


def test_a_group_of_a_regex_may_be_named_by_its_number() -> None:
    assert gather(EACH, EACH.matches(names(1, 2)), "2", r"x.\1") == [("x.0", ("h.0.0", "h.0.1"))]


def test_a_group_that_the_pattern_does_not_have_is_told_by_its_number() -> None:
    with pytest.raises(RefError, match="has 2 groups, no number 3"):
        gather(EACH, EACH.matches(names(1, 2)), "3", r"x.\1")


def test_a_number_is_no_name_of_a_token() -> None:
    tokens = compile_pattern(("h", "$i", "$e"))
    with pytest.raises(RefError, match="does not capture '2'"):
        gather(tokens, tokens.matches(names(1, 2)), "2", ("x", "$i"))


def test_a_run_of_segments_is_no_number() -> None:
    runs = compile_pattern(("h", "*rest"))
    with pytest.raises(RefError, match=r"'rest' is '0\.0' in 'h\.0\.0', which is not a number"):
        gather(runs, runs.matches(names(1, 1)), "rest", ("x",))


def test_several_missing_numbers_are_told_as_a_range() -> None:
    with pytest.raises(RefError, match="Numbers 1 to 3 are missing"):
        gather(EACH, EACH.matches(["h.0.0", "h.0.4"]), "e", r"x.\g<i>")


def test_a_part_may_be_counted_from_another_number() -> None:
    assert scatter(EACH, [("h.0.0", ("0", "0"))], "k", r"x.${k+8}", [2]) == [("x.8", "x.9")]


def test_where_there_is_one_part_its_number_may_be_left_out() -> None:
    assert scatter(EACH, [("h.0.0", ("0", "0"))], "k", "x", [1]) == [("x",)]
