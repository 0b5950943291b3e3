"""Patterns given as regular expressions, and the time limit on all of them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brainsurgery_jax.select import RefError, compile_pattern, names_begun, names_matched
from brainsurgery_jax.select.limit import TimeLimit
from brainsurgery_jax.select.regexes import scan

NAMES = ("h.0.w", "h.10.w", "h.2.w", "ln.weight", "lnXweight")
REGEXES = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            ".",
            r"\.",
            r"\d",
            "[ab]",
            "[^]b]",
            "[a[]",
            "(",
            ")",
            "(?:",
            "(?P<x>",
            "*",
            "+",
            "?",
            "|",
            "{2}",
            "{1,2}",
            "{",
            "}",
        ]
    ),
    max_size=8,
).map("".join)
TEXTS = st.text("ab.1{}[]2,", max_size=6)


def is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def test_a_pattern_matches_the_whole_name():
    assert [name for name, _ in compile_pattern(r"h\..").matches(["h.0", "h.0.w", "x.h.0"])] == ["h.0"]


def test_a_dot_is_a_wildcard():
    assert [name for name, _ in compile_pattern("ln.weight").matches(NAMES)] == ["ln.weight", "lnXweight"]


def test_matches_come_in_lexicographic_order():
    names = [name for name, _ in compile_pattern(r"h\..*").matches(reversed(NAMES))]
    assert names == ["h.0.w", "h.10.w", "h.2.w"]


def test_a_match_binds_the_groups():
    pattern = compile_pattern(r"h\.(?P<i>\d+)\.(w)")
    assert pattern.match("h.10.w") == ("10", "w")
    assert pattern.names == {"i": 0}


def test_a_group_that_takes_no_part_binds_empty_text():
    assert compile_pattern("(a)?b").match("b") == ("",)
    assert compile_pattern("(a)|b").match("b") == ("",)


def test_no_match_is_none():
    assert compile_pattern("a").match("b") is None


def test_a_bad_regex_names_the_position():
    with pytest.raises(RefError, match=r"'h\.\(0' is not a regular expression: missing \).* at position 2") as caught:
        compile_pattern("h.(0")
    assert caught.value.code == "regex-syntax"


def test_a_lone_star_is_explained():
    with pytest.raises(RefError, match=r"nothing to repeat at position 0\n.*any text is '\.\*'"):
        compile_pattern("*.weight")


@pytest.mark.parametrize("text", ["a{99999999999999999999}", f"a{{{'9' * 5000}}}", "(" * 5000 + ")" * 5000])
def test_an_absurd_regex_is_an_error_of_the_plan(text: str):
    with pytest.raises(RefError, match="is not a regular expression"):
        compile_pattern(text)


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("a.b", None),
        (r"a\.b", "a.b"),
        ("w{x}", "w{x}"),
        ("a{2}", None),
        (r"\d", None),
        ("(a)", None),
        ("a|b", None),
        (r"\N{DASH}", None),
    ],
)
def test_a_regex_without_metacharacters_is_one_name(text: str, literal: str | None):
    assert scan(text).literal == literal


def test_one_name_is_looked_up_not_searched():
    class Known(dict[str, int]):
        def __iter__(self):
            raise AssertionError("searched")

    assert compile_pattern(r"a\.b").matches(Known({"a.b": 1})) == [("a.b", ())]
    assert compile_pattern(r"a\.c").matches(Known({"a.b": 1})) == []


@given(st.text())
def test_an_escaped_text_is_literal(text: str):
    pattern = compile_pattern(re.escape(text))
    assert pattern.literal == text
    assert pattern.match(text) == ()


@pytest.mark.filterwarnings("ignore:Possible nested set")
@given(REGEXES, TEXTS)
def test_a_literal_is_the_only_name_that_matches(regex: str, text: str):
    literal = scan(regex).literal if is_regex(regex) else None
    if literal is not None:
        assert bool(re.fullmatch(regex, text)) == (text == literal)
        assert re.fullmatch(regex, literal)


@pytest.mark.filterwarnings("ignore:Possible nested set")
@given(REGEXES, TEXTS)
def test_patterns_match_as_re_does(regex: str, text: str):
    assume(is_regex(regex))
    expected = re.fullmatch(regex, text)
    assert compile_pattern(regex).match(text) == (None if expected is None else expected.groups(""))


@pytest.mark.filterwarnings("ignore:Possible nested set")
@given(REGEXES, TEXTS)
def test_patterns_under_a_time_limit_match_as_re_does(regex: str, text: str):
    guarded = f"(?=)(?:{regex})"  # look-ahead is never taken for safe
    assume(is_regex(regex) and is_regex(guarded) and not scan(guarded).safe)
    assert (compile_pattern(guarded).match(text) is None) == (re.fullmatch(guarded, text) is None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("(?:a){e<=1}", "a{e<=1}"),
        ("(?=)[[:alpha:]]", "a]"),
        (r"(?=)[\[x]", "["),
        (r"(?=)\N{LATIN SMALL LETTER A}", "a"),
    ],
)
@pytest.mark.filterwarnings("ignore:Possible (nested|set)")
def test_extensions_of_the_guarded_matcher_mean_nothing(text: str, name: str):
    pattern = compile_pattern(text)
    assert re.fullmatch(text, name)
    assert pattern.match(name) == ()
    assert pattern.match("b") is None


@pytest.mark.parametrize(
    "text",
    [
        r"(a+)+",
        r"(?:ab)?",
        r"(a)\1",
        r"(?P<x>a)(?P=x)",
        "(?=a)a",
        "(?i)a",
        "a*b*c*d*",
        "a?" * 20,
        "a?" * 3 + "a*a*a*",
        "(?:a|b)" * 20,
        "a{0,9}" * 4,
    ],
)
def test_a_regex_that_might_explode_is_not_safe(text: str):
    assert not scan(text).safe


@pytest.mark.parametrize(
    "text", [r"h\.(\d+)\.(.*)\.w", r"(?P<i>[0-9]+)\.(?:q|k|v)", r"a{3}b?", r"[(+)+]*", r"\(a\)*", "a{2}" * 5]
)
def test_a_regex_of_few_plain_repetitions_is_safe(text: str):
    assert scan(text).safe


@pytest.mark.parametrize(
    "text", ["a{2002}", "(?:a|bc){300000}", "(?:(?:a{1000}){1000}){1000}", "(?:a{99}b){99}", "(?=)(?:ab){5000,}"]
)
def test_counts_that_ask_for_more_than_any_name_has_are_refused(text: str):
    with pytest.raises(RefError, match=r"repeats something at least [\d,]+ times, and no name is that long") as caught:
        compile_pattern(text)
    assert caught.value.code == "regex-syntax"


@pytest.mark.parametrize("text", ["a{1,99999999}", "(?:a{1,9999}){1,9999}", "a{2000}", "a{0,}", "(?:a{10}){10}"])
def test_counts_without_a_high_minimum_are_taken(text: str):
    assert compile_pattern(text).match("b") is None


def test_a_regex_of_a_million_characters_is_refused():
    with pytest.raises(RefError, match="is too long for a regular expression: 1,000,000 characters"):
        compile_pattern("a" * 1_000_000)


@pytest.mark.parametrize("limit", [1000, 5000])
def test_a_regex_that_only_the_guarded_matcher_finds_too_deep_is_refused_whatever_the_limit(limit: int):
    before = sys.getrecursionlimit()  # libraries that other tests import may have raised it
    sys.setrecursionlimit(limit)
    try:
        with pytest.raises(RefError, match="cannot be matched under a time limit: it is nested too deeply"):
            compile_pattern("(?:" * 250 + "a" + ")*" * 250)
        assert compile_pattern("(?:" * 90 + "a" + ")*" * 90).match("b") is None
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("source", ["a*a*a*b", ("~a*a*a*b",), ("*x", "*y", "*z", "b")])
def test_a_harmless_pattern_on_a_name_without_end_is_stopped_too(source: str | tuple[str, ...]):
    name = ".".join("a" * 3000) if len(source) == 4 else "a" * 30_000 + "c"
    try:
        assert compile_pattern(source).match(name, TimeLimit(0.1)) is None  # a fast machine may get to the end
    except RefError as error:
        assert error.code == "regex-timeout"


def test_long_names_match_as_short_ones_do():
    long = "a" * 300
    assert compile_pattern("(a*)(b)?").match(long) == (long, "")
    assert compile_pattern(("h", "~x::a*", "*rest")).match(f"h.{long}.b") == (long, ("b",))


@pytest.mark.parametrize("regex", ["(a+)+b", "(a|aa)+b", "(a*)*b", "(.*a){30}b"])
def test_a_catastrophic_regex_ends_in_bounded_time(regex: str):
    try:
        assert compile_pattern(regex).match("a" * 60, TimeLimit(0.2)) is None
    except RefError as error:
        assert error.code == "regex-timeout"


def test_a_regex_out_of_time_is_an_error_that_names_it():
    with pytest.raises(RefError, match=r"'\(a\|aa\)\+c' took more than 0.1 s on 1 name") as caught:
        compile_pattern("(a|aa)+c").match("a" * 60, TimeLimit(0.1))
    assert caught.value.code == "regex-timeout"


@pytest.mark.parametrize("source", ["a.*", "(?=)a", ("*x", "~[ab]+")])
def test_the_time_limit_holds_over_all_names_together(source: str | tuple[str, ...]):
    clock = iter(range(100))  # a second passes between two looks
    with pytest.raises(RefError, match="took more than 1 s on 2 names and was stopped"):
        compile_pattern(source).matches(["a.a", "a.b"], TimeLimit(1, lambda: next(clock)))


def test_a_clock_that_stands_still_stops_no_search():
    names = [f"a.{i}" for i in range(2000)]
    assert len(compile_pattern("a.*").matches(names, TimeLimit(1e-9, lambda: 0.0))) == 2000


def test_waiting_for_a_busy_machine_does_not_count():
    assert TimeLimit().clock is time.thread_time


def test_regexes_of_other_programs_match_names_or_their_beginnings_as_re_does():
    names = ["model.layers.1.mlp", "model.layers.10.mlp", "lm_head", "a.lm_head"]
    for text in (r"model\.layers\.1", r".*lm_head$", r"lm_head", r"model\.layers\.1\b|lm", "", r"^model", "nothing"):
        assert names_begun(text, names) == {name for name in names if re.match(text, name)}
        assert names_matched(text, names) == {name for name in names if re.fullmatch(text, name)}
    assert names_begun("(", names) == names_matched("(", names) == frozenset()


@pytest.mark.parametrize("names_found", [names_begun, names_matched])
def test_regexes_of_other_programs_are_guarded_against_endless_backtracking(names_found: Callable[..., object]):
    with pytest.raises(RefError) as stopped:
        names_found("(a|a)*(a|aa)*(a+)+$", [f"{'a' * 60}b" * 3])
    assert stopped.value.code == "regex-timeout"
