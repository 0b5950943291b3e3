"""The YAML dialect of plans: values, positions, mistakes, and writing it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.plan.scalars import read_scalar
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, compose, dump_yaml, get, plain, spans

LOADERS = [yaml.SafeLoader] + ([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])
both_loaders = pytest.mark.parametrize("loader", LOADERS)

characters = st.characters(codec="utf-8", exclude_characters="\0")
tricky = st.sampled_from(
    [
        "1e-6", "1E5", ".5", "1.", "-.5", "010", "0o17", "0x_", "0b1", "1_000", "12:30", "2020-01-01", ".inf", "-.Inf",
        ".nan", "yes", "NO", "on", "~", "null", "", " ", "a: b", "a:b", "a #b", "#x", "- a", "-", "?", ":", "=", "<<",
        "*x", "&x", "!x", "@x", "`x", "%x", "|x", ">x", "'x", '"x', "[a", "{a", "[a, b]", "${i}", "\\${i}",
        "---", "--- a", "...", "a\nb", "a\n", "\n", "\ta", "\x85", "\u2028", "\ufeff", "h\\.(\\d+)",
    ]
)  # fmt: skip
texts = st.text(characters, max_size=12) | tricky
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
yamlish = st.text("ab1: -?,[]{}'\"\\\n\t#&*!|>%@~<=.0e", max_size=40)


def load(text: str) -> Any:
    node = compose(text, "plan.yaml")
    assert node is not None
    return plain(node)


def mistakes(text: str, **options: Any) -> tuple[Diagnostic, ...]:
    with pytest.raises(PlanError, match=r"^plan\.yaml") as caught:
        compose(text, "plan.yaml", **options)
    return caught.value.diagnostics


def mapping(text: str) -> Map:
    node = compose(text, "plan.yaml")
    assert isinstance(node, Map)
    return node


# --- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("1E5", 1e5), ("1e+3", 1e3), (".5", 0.5), ("-.5", -0.5), ("1.", 1.0), ("1_0.5", 10.5),
        ("8", 8), ("-8", -8), ("+8", 8), ("0", 0), ("1_000", 1000), ("0x1F", 31), ("-0b101", -5), ("010", 8),
        ("0o17", 15),
        (".inf", math.inf), ("-.Inf", -math.inf),
        ("yes", True), ("On", True), ("TRUE", True), ("no", False), ("OFF", False), ("false", False),
        ("~", None), ("null", None), ("Null", None), ("", None),
    ],
)  # fmt: skip
def test_an_unquoted_text_that_looks_like_a_value_is_one(text: str, value: Any) -> None:
    assert load(f"x: {text}") == {"x": value}
    assert type(read_scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["12:30", "12:30:45", "2020-01-01", "09", "0x_", "0b2", "1.2.3", "e5", "1e", ".", "yES", "y", "=", "_1", "٣"],
)
def test_times_dates_and_near_misses_stay_texts(text: str) -> None:
    assert load(f"x: {text}") == {"x": text}


def test_a_quoted_text_is_always_a_text() -> None:
    assert load("""x: ['8', "yes", '1e-6', '~', '*xs']""") == {"x": ["8", "yes", "1e-6", "~", "*xs"]}


def test_a_not_a_number_is_a_number() -> None:
    assert math.isnan(load("x: .nan")["x"])


def test_digits_without_end_are_a_text_and_not_a_crash() -> None:
    assert load("9" * 5000) == "9" * 5000


def test_a_str_tag_makes_a_text() -> None:
    assert load("x: !!str 8") == {"x": "8"}


def test_references_to_variables_are_left_alone() -> None:
    assert load(r"to: '\${i}.${j}'") == {"to": r"\${i}.${j}"}


def test_keys_are_texts_whatever_they_look_like() -> None:
    assert load("1: a\nyes: b\n~: c\n1e-6: d") == {"1": "a", "yes": "b", "~": "c", "1e-6": "d"}


def test_a_scalar_keeps_how_it_was_written() -> None:
    assert get(mapping("by: 1e-6"), "by") == Scalar(1e-6, "1e-6", Span("plan.yaml", 1, 5))


def test_an_alias_stands_for_its_anchor() -> None:
    assert load("a: &x {by: 2}\nb: *x") == {"a": {"by": 2}, "b": {"by": 2}}


def test_a_merge_key_brings_in_what_the_mapping_does_not_say_itself() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}"
    assert load(text)["c"] == {"x": 1, "y": 1, "z": 3}


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert load("'<<': 1") == {"<<": 1}


@pytest.mark.parametrize("text", ["", "  \n", "# only a comment\n"])
def test_a_text_without_content_composes_to_none(text: str) -> None:
    assert compose(text, "plan.yaml") is None


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter() -> None:
    assert spans(mapping("\ufeffa: 1\r\nb: 2\r\n"))["b",] == Span("plan.yaml", 2, 4)


def test_get_gives_none_for_a_missing_key() -> None:
    assert get(mapping("a: 1"), "b") is None


# --- positions

PLAN = """\
inputs: [base::m.safetensors]
transforms:
  - scale: {target: 'h\\..*', by: 2}
"""


def test_every_value_has_its_line_and_column() -> None:
    places = spans(mapping(PLAN))
    assert places["inputs", 0] == Span("plan.yaml", 1, 10)
    assert places["transforms", 0, "scale", "target"] == Span("plan.yaml", 3, 21)
    assert places["transforms", 0, "scale"] == Span("plan.yaml", 3, 12)


def test_every_key_has_its_line_and_column() -> None:
    places = spans(mapping(PLAN))
    assert places["@key", "transforms"] == Span("plan.yaml", 2, 1)
    assert places["transforms", 0, "scale", "@key", "by"] == Span("plan.yaml", 3, 30)


def test_what_an_alias_brings_in_stands_where_its_anchor_stands() -> None:
    assert spans(mapping("a: &x {by: 2}\nb: *x"))["b", "by"] == Span("plan.yaml", 1, 12)


@both_loaders
@pytest.mark.parametrize("text", ["dump:", "dump:\n\n", "{dump: }", "{dump:\n }", "{dump}", "? dump"])
def test_a_value_that_is_not_written_stands_where_its_key_stands(text: str, loader: Any) -> None:
    node = compose(text, "plan.yaml", loader=loader)
    assert isinstance(node, Map)
    assert spans(node)["dump",] == spans(node)["@key", "dump"]


# --- mistakes


def test_all_duplicate_keys_are_reported_with_both_lines() -> None:
    first, second = mistakes("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert (first.code, first.span) == ("yaml-duplicate-key", Span("plan.yaml", 2, 11))
    assert "'a' occurs twice in one mapping, in line 1 and in line 3" in second.message


def test_a_key_is_a_duplicate_of_its_quoted_self() -> None:
    (mistake,) = mistakes("1: a\n'1': b")
    assert mistake.code == "yaml-duplicate-key"


def test_duplicate_keys_before_a_syntax_error_are_reported_with_it() -> None:
    assert [m.code for m in mistakes("a: 1\na: 2\nb: @x")] == ["yaml-duplicate-key", "yaml-syntax"]


TRAPS = [
    ("a:\n\tb: 1\n", 2, "there is a tab where", "spaces"),
    ("a: 1\n\tb: 2\n", 2, "there is a tab where", "spaces"),
    ("from: *.weight", 1, "'*' starts a YAML alias", "Quote"),
    ("from: [*xs, w]", 1, "*xs is read as a YAML alias", "'*xs'"),
    ("x: & a", 1, "'&' starts a YAML anchor", "Quote"),
    ("a: 1\nx: {from: h[0], to: y}", 2, "'[' is not allowed here, inside the '{' opened in line 2", "quote"),
    ("x: { to: h.{i}.w }", 1, "'{' is not allowed here", "quote"),
    ("x: {a: b: c}", 1, "':' is not allowed here", "quote"),
    ("x: [h, ${i}, w]", 1, "'{' is not allowed here, inside the '['", "quote"),
    ("a: 1\nx: {a: 1\n", 2, "the '{' opened here is never closed", "Close it"),
    ("x: [", 1, "never closed", "Close it"),
    ("x: {a: 1,, b: 2}", 1, "a value cannot start with ','", "Quote"),
    ("x: ]", 1, "a value cannot start with ']'", "Quote"),
    ("x: 'abc\ny: 2\n", 1, "the quote ' opened here is never closed", "''"),
    ('x: "abc\ny: 2\n', 1, 'the quote " opened here is never closed', "''"),
    ('x: "h\\.0"', 1, "this backslash escape", "single quotes"),
    ("x: @foo", 1, "a text cannot start with '@'", "quotes"),
    ("x: `foo", 1, "a text cannot start with '`'", "quotes"),
    ("x: %foo", 1, "a text cannot start with '%'", "quotes"),
    ("x: a: b", 1, "a key is not allowed in this place", "': '"),
    ("x:\n  a: 1\n   b: 2\n", 3, "a key is not allowed in this place", "line up"),
    ("x: - a", 1, "a list cannot start on this line", "own"),
    ("a: b\nc\nd: 1\n", 2, "neither 'key: value' nor '- item'", "':'"),
    ("x: |b", 1, "start a block of text", "Quote"),
    ("x: 'a' b", 1, "does not continue what starts in line 1", "quote"),
    ("x: [a-z]+", 1, "does not continue what starts in line 1", "'[a-z]+'"),
    ("a:\n  - b\n - c\n", 3, "does not continue what starts in line 1", "Line up"),
    ("a:\n  - b {c: 1, d: 2}\n", 2, "the key 'b' is not followed by ': '", "Write `b: {...}`."),
    ("a:\n  - b:{c: 1, d: 2}\n", 2, "the key 'b' is not followed by ': '", "Write `b: {...}`."),
    ("b:[1]\na: 1\n", 1, "the key 'b' is not followed by ': '", "Write `b: [...]`."),
    ("  a: 1\nb: 2\n", 2, "does not continue the lines above", "Line up"),
    ("%YAML 3.0\n---\na: 1", 1, "'%' is a YAML directive", "Remove"),
    ('x: "\\ud800"', 1, "escape", ""),
    ("x: a\x07", 1, "U+0007 is not allowed in a YAML file", "Remove"),
]


@both_loaders
@pytest.mark.parametrize(("text", "line", "message", "hint"), TRAPS)
def test_a_common_trap_is_explained(text: str, line: int, message: str, hint: str, loader: Any) -> None:
    (mistake,) = mistakes(text, loader=loader)
    assert mistake.code == "yaml-syntax"
    assert message in mistake.message
    assert hint in mistake.hint
    assert mistake.span is not None
    assert mistake.span.line == line


def test_a_message_names_the_column_of_the_unquoted_text() -> None:
    (mistake,) = mistakes("copy: { to: y, from: *.weight }")
    assert str(mistake) == (
        "plan.yaml:1:22: '*' starts a YAML alias, and no name follows it [yaml-syntax]\n"
        "    Quote a text that starts with *."
    )


@both_loaders
def test_an_escape_that_ends_a_text_in_other_languages_is_refused(loader: Any) -> None:
    (mistake,) = mistakes('x: "a\\0b"', loader=loader)
    assert mistake.code == "yaml-syntax"
    assert "U+0000" in mistake.message


def test_an_escape_beyond_unicode_is_refused_by_either_loader() -> None:
    for loader in LOADERS:
        assert mistakes('x: "\\Uffffffff"', loader=loader)[0].code == "yaml-syntax"


@both_loaders
@pytest.mark.parametrize("text", ["x: !foo a", "x: !!python/name:os.system ''", "x: !a!b c", "!!set {a}", "x: !!int 8"])
def test_tags_are_refused(text: str, loader: Any) -> None:
    (mistake,) = mistakes(text, loader=loader)
    assert mistake.code == "yaml-tag"


def test_a_second_document_is_refused() -> None:
    (mistake,) = mistakes("a: 1\n---\nb: 2\n")
    assert (mistake.code, mistake.span) == ("yaml-documents", Span("plan.yaml", 2, 1))


def test_a_key_that_is_no_text_is_refused() -> None:
    (mistake,) = mistakes("to: {{i}: 1}")
    assert mistake.code == "yaml-key"
    assert "a mapping with the keys i" in mistake.message


def test_a_merge_key_takes_only_mappings() -> None:
    (mistake,) = mistakes("<<: [1]")
    assert mistake.code == "yaml-merge-key"


def test_an_unknown_anchor_under_a_merge_key_is_one_mistake() -> None:
    assert len(mistakes("<<: *nothing")) == 1


def test_an_alias_inside_of_its_own_anchor_is_refused() -> None:
    (mistake,) = mistakes("a: &a [*a]")
    assert "no anchor &a comes before it" in mistake.message


def test_an_alias_bomb_is_refused_without_unpacking_it() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (mistake,) = mistakes("\n".join(lines))
    assert mistake.code == "yaml-too-large"
    assert mistake.span is not None
    assert mistake.span.line == 7


def test_a_long_text_that_many_aliases_repeat_is_refused() -> None:
    text = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]"
    (mistake,) = mistakes(text)
    assert mistake.code == "yaml-too-large"


def test_aliases_that_nest_line_by_line_are_refused() -> None:
    lines = ["a0: &a0 x"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 300)]
    assert "nested more than 200 deep" in mistakes("\n".join(lines))[0].message


@both_loaders
@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 20_000, "- " * 20_000, "? " * 20_000])
def test_deep_nesting_is_refused(text: str, loader: Any) -> None:
    assert mistakes(text, loader=loader)[0].code == "yaml-too-large"


def test_two_hundred_levels_can_be_walked() -> None:
    node = compose("[" * 200 + "]" * 200, "plan.yaml")
    assert isinstance(node, List)
    assert len(spans(node)) == 200
    assert str(plain(node)).count("[") == 200


@given(st.text(max_size=30) | yamlish)
def test_any_text_composes_or_raises_a_plan_error(text: str) -> None:
    for loader in LOADERS:
        try:
            node = compose(text, "plan.yaml", loader=loader)
        except PlanError as error:
            assert error.diagnostics
        else:
            assert node is None or spans(node)


# --- the loaders agree, and writing


def composed(text: str, loader: Any) -> Node | str | None:
    try:
        return compose(text, "plan.yaml", loader=loader)
    except PlanError:
        return "refused"


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
@given(data, st.booleans())
def test_libyaml_and_pyyaml_give_the_same_nodes_and_spans(value: Any, flow: bool) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow) if flow else dump_yaml(value)
    # repr, since a not-a-number differs from itself
    assert repr(composed(text, yaml.CSafeLoader)) == repr(composed(text, yaml.SafeLoader))


@given(data)
def test_what_is_dumped_composes_to_the_same_data(value: Any) -> None:
    assert load(dump_yaml(value)) == value


@given(scalars)
def test_what_is_dumped_keeps_its_type(value: Any) -> None:
    assert type(load(dump_yaml([value]))[0]) is type(value)


def test_a_dump_reads_like_a_plan() -> None:
    plan = {"inputs": ["b::m"], "transforms": [{"scale": {"target": "h\\..*", "by": 1e-06}}, "help"], "output": None}
    assert dump_yaml(plan) == (
        "inputs:\n  - b::m\ntransforms:\n  - scale:\n      target: h\\..*\n      by: 1.0e-06\n  - help\noutput: null\n"
    )


def test_a_dump_quotes_what_would_read_as_something_else() -> None:
    assert dump_yaml(["1e-6", "yes", "*x", "~", "${i}"]) == "- '1e-6'\n- 'yes'\n- '*x'\n- '~'\n- ${i}\n"


def test_a_dump_repeats_shared_data_instead_of_naming_it() -> None:
    shared = {"by": 2}
    assert dump_yaml({"a": shared, "b": shared}) == "a:\n  by: 2\nb:\n  by: 2\n"
