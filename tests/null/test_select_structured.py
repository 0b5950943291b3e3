"""Patterns given as lists of tokens over dot-separated segments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.select import RefError, compile_pattern
from brainsurgery_jax.select.limit import TimeLimit

TOKENS = st.sampled_from(["a", "b", "$x", "$y", "*x", "*y", "*z", "~a|b", "~x::[ab]", "~y::(.).?", "*", "$", "a.b"])
PATTERNS = st.lists(TOKENS, min_size=1, max_size=4).map(tuple)
NAMES = st.lists(st.sampled_from(["a", "b", "ab", ""]), min_size=1, max_size=5).map(".".join)


def variables(tokens: tuple[str, ...], name: str) -> Mapping[str, object] | None:
    """What the pattern binds by variable, or None."""
    pattern = compile_pattern(tokens)
    binding = pattern.match(name)
    return None if binding is None else {variable: binding[at] for variable, at in pattern.names.items()}


def brute_force(tokens: tuple[str, ...], name: str) -> Mapping[str, object] | None:
    """Tries every length of every token, longest first; knows only the tokens of this test."""
    segments = name.split(".")
    lengths = [range(len(segments), -1, -1) if len(t) > 1 and t[0] == "*" else range(1, 2) for t in tokens]
    for choice in product(*lengths):
        if sum(choice) == len(segments):
            ends = [sum(choice[: at + 1]) for at in range(len(choice))]
            runs = [tuple(segments[end - count : end]) for end, count in zip(ends, choice, strict=True)]
            found = [bindings(token, run) for token, run in zip(tokens, runs, strict=True)]
            if None not in found and agree([pair for one in found if one for pair in one]):
                return {key: value for one in found if one for key, value in one}
    return None


def bindings(token: str, run: tuple[str, ...]) -> list[tuple[str, object]] | None:
    if len(token) > 1 and token[0] == "*":
        return [(token[1:], run)]
    if len(token) > 1 and token[0] == "$":
        return [(token[1:], run[0])]
    if len(token) > 1 and token[0] == "~":
        name, _, body = token[1:].rpartition("::")
        matched = re.fullmatch(body, run[0])
        return None if matched is None else [(name, matched[matched.re.groups])] if name else []
    return [] if run[0] == token else None


def agree(pairs: list[tuple[str, object]]) -> bool:
    return all(left[1] == right[1] for left in pairs for right in pairs if left[0] == right[0])


@given(PATTERNS, NAMES)
def test_structured_patterns_find_what_brute_force_finds_first(tokens: tuple[str, ...], name: str):
    assert variables(tokens, name) == brute_force(tokens, name)


@pytest.mark.parametrize(
    ("token", "name", "bound"),
    [
        ("*xs", "a.b.c", {"xs": ("a", "b", "c")}),
        ("$x", "a", {"x": "a"}),
        ("$x", "a.b", None),
        ("~[ab]+", "ab", {}),
        ("~[ab]", "ab", None),
        ("~(a)(b)", "ab", {}),
        ("~x::[ab]+", "ab", {"x": "ab"}),
        ("~x::a(.)", "ab", {"x": "b"}),
        ("~x,y::(.)(.)", "ab", {"x": "a", "y": "b"}),
        ("~x::(?:a|b)::c", "a::c", {"x": "a::c"}),
        ("~x,x::(.)(.)", "aa", {"x": "a"}),
        ("~x,x::(.)(.)", "ab", None),
        ("a", "a", {}),
        ("a", "b", None),
        ("a.b", "a.b", None),
        ("$", "$", {}),
        ("*", "*", {}),
        ("~", "~", {}),
        ("$", "a", None),
        ("*", "a.b", None),
    ],
)
def test_each_token_takes_and_binds(token: str, name: str, bound: Mapping[str, object] | None):
    assert variables((token,), name) == bound


def test_a_star_token_takes_the_longest_run_first():
    assert variables(("*xs", "w", "*ys"), "a.w.b.w") == {"xs": ("a", "w", "b"), "ys": ()}


def test_a_star_token_takes_no_segment_if_need_be():
    assert variables(("*xs", "w"), "w") == {"xs": ()}


def test_a_variable_used_twice_must_capture_equal_values():
    assert variables(("*x", "m", "*x"), "a.b.m.a.b") == {"x": ("a", "b")}
    assert variables(("$x", "$x"), "a.b") is None


def test_a_segment_and_a_run_of_one_name_never_agree():
    assert variables(("$x", "*x"), "a.a") is None


def test_segments_may_be_empty():
    assert variables(("$x", "*y"), "..") == {"x": "", "y": ("", "")}


def test_variables_are_bound_in_order_of_appearance():
    pattern = compile_pattern(("$b", "~a,c::(.)(.)", "*rest"))
    assert pattern.names == {"b": 0, "a": 1, "c": 2, "rest": 3}
    assert pattern.matches(["y.12", "x.34.w"]) == [("x.34.w", ("x", "3", "4", ("w",))), ("y.12", ("y", "1", "2", ()))]


def test_plain_tokens_are_one_name():
    assert compile_pattern(("h", "0", "w")).literal == "h.0.w"
    assert compile_pattern(("h", "$i")).literal is None


def test_a_plain_token_with_a_dot_matches_nothing():
    pattern = compile_pattern(("h.0", "w"))
    assert pattern.literal is None
    assert pattern.matches(["h.0.w"]) == []


@pytest.mark.parametrize(
    "token", ["$1", "${x}", "$x y", "*1", "*a-b", "$ä", "~n, k::(.)(.)", "~::a", "~x,,y::(.)(.)", "~1::a"]
)
def test_variables_are_ascii_identifiers(token: str):
    with pytest.raises(RefError, match="is not the name of a variable") as caught:
        compile_pattern((token,)).match("a")
    assert caught.value.code == "token-syntax"


@pytest.mark.parametrize("token", ["~x::", "~x,y::", "~::"])
def test_an_empty_regex_in_a_token_is_an_error(token: str):
    with pytest.raises(RefError, match="has an empty regular expression"):
        compile_pattern((token,)).match("a")


@pytest.mark.parametrize("token", ["~(?P<n>a)", "~x::(?P<n>a)"])
def test_a_named_group_in_a_token_is_an_error(token: str):
    with pytest.raises(RefError, match=r"has a named group\n.*plain groups"):
        compile_pattern((token,)).match("a")


def test_a_bad_regex_in_a_token_is_an_error():
    with pytest.raises(RefError, match=r"'\(' is not a regular expression: missing \)"):
        compile_pattern(("~(",)).match("a")


def test_a_token_error_is_raised_only_if_the_token_is_reached():
    pattern = compile_pattern(("x", "~("))
    assert pattern.match("y.a") is None
    assert pattern.match("x") is None
    with pytest.raises(RefError, match="regular expression"):
        pattern.match("x.a")


def test_a_bad_star_token_is_reached_even_at_the_end():
    with pytest.raises(RefError, match="'1' is not the name"):
        compile_pattern(("x", "*1")).match("x")


@pytest.mark.parametrize(("token", "count"), [("~x::(.)(.)", "1 variables and 2"), ("~x,y::..", "2 variables and 0")])
def test_groups_and_variables_must_be_as_many_if_the_segment_matches(token: str, count: str):
    pattern = compile_pattern((token,))
    assert pattern.match("a") is None
    with pytest.raises(RefError, match=count) as caught:
        pattern.match("ab")
    assert caught.value.code == "token-group"


def test_a_bound_group_must_take_part():
    with pytest.raises(RefError, match="matches segment 'b' without one of its groups"):
        compile_pattern(("~x::(a)|b",)).match("b")


def test_an_ignored_group_need_not_take_part():
    assert compile_pattern(("~(a)|b",)).match("b") == ()


def test_many_stars_do_not_explode():
    tokens = tuple(token for at in range(20) for token in (f"*x{at}", "a"))
    assert compile_pattern((*tokens, "b")).match(".".join("a" * 60)) is None


def test_stars_that_must_agree_end_in_bounded_time():
    clock = iter(range(100))  # a second passes between two looks
    tokens = tuple(f"*{v}" for v in "pqrstuvwpqrstuvwpqrstuvw")
    with pytest.raises(RefError, match=r"took more than 9 s"):
        compile_pattern((*tokens, "b")).match(".".join("abaabbabab" * 8), TimeLimit(9, lambda: next(clock)))


def test_a_catastrophic_regex_in_a_token_is_refused():
    with pytest.raises(RefError, match=r"\['~\(a\|aa\)\+c'\] took more than"):
        compile_pattern(("~(a|aa)+c",)).match("a" * 60, TimeLimit(0.1))
