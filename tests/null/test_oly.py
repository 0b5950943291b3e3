"""OLY, steps on one line: what is read as what, which mistakes are explained how, and the way back from plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax import api
from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.plan.oly import parse_oly, to_oly
from brainsurgery_jax.plan.oly_words import MAX_DEPTH
from brainsurgery_jax.plan.overrides import read_plan_files
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, compose, dump_yaml, get, plain, spans

PLANS = sorted((Path(__file__).parents[2] / "plans").glob("*.yaml"))
RECORDS = [*OPS.values(), *ASSERTS.values()]
EXAMPLES = sorted({text for op in RECORDS for text in re.findall(r"Example: `(.+?)`\s*(?:\n|$)", op.doc)})

characters = st.characters(codec="utf-8", exclude_characters="\0")
names = st.sampled_from(["copy", "assert", "é", "x-1", "_"])
keys = st.sampled_from(["from", "to", "a b", "", "1", "a.b", "it's", "x::y", "-"]) | st.text(characters, max_size=4)
tricky = st.sampled_from(
    [
        "1e-6", ".5", "1.", "007", "+1", "1_000", "0x10", "true", "NULL", "Null", "~", "~x::[0-9]+", ".inf", "a:",
        "-.nan", "from: x", "from:x", "base::x.pt", "a, b", "a b", "x\\(", "[(]", "a(b", "a)", "a]", "{", "\\]",
        "w::[:, 0]", "h.(a|b)", "it's", "'", '"', "\\", "\\d", "#", "a #b", "\t", "a\nb", "\x85", "\u2028", "\ufeff",
        "\x07", "${i}", "*xs", "-",
    ]
)  # fmt: skip
texts = st.text(characters, max_size=8) | st.text("ab()[]{},:'\"\\ \t", max_size=8) | tricky
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
steps = names | st.dictionaries(names | keys, data, min_size=1, max_size=1)


def read(line: str) -> Any:
    return plain(parse_oly(line))


def mistake(line: str) -> Diagnostic:
    with pytest.raises(PlanError, match=r"^<line>:1:\d+: .* \[oly-syntax\]\n") as caught:
        parse_oly(line)
    (only,) = caught.value.diagnostics
    return only


def planned(node: Node) -> Step:
    """The step that a node spells, in a plan of one input."""
    root = compose("inputs: [m::m.safetensors]\ntransforms: [x]", "plan.yaml")
    assert isinstance(root, Map)
    entries = tuple((k, List((node,), k.span) if k.text == "transforms" else v) for k, v in root.entries)
    (step,) = api.parse_document(Map(entries, root.span)).data.steps
    return step


def assert_same_step(left: Node, right: Node) -> None:
    """Places apart, the two nodes are one step."""
    assert plain(left) == plain(right)
    one, other = planned(left), planned(right)
    assert (one.op, without_spans(one.params), one.text) == (other.op, without_spans(other.params), other.text)


def without_spans(params: Mapping[str, Any]) -> str:
    """The parameters in print; those of `execute` hold nodes, which know where they stand."""
    return re.sub(r"Span\([^)]*\)", "", repr(params))


# --- what is read


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("exit", "exit"),
        ("exit:", {"exit": None}),
        ("exit :", {"exit": None}),
        ("  exit:\t", {"exit": None}),
        ("copy: {}", {"copy": {}}),
        ("copy:from:x,to:y", {"copy": {"from": "x", "to": "y"}}),
        ("copy: {from: x, to: y}", {"copy": {"from": "x", "to": "y"}}),
        ("help: assert: equal", {"help": {"assert": "equal"}}),
        (
            "assert: equal: {left: a, right: b, eps: 1e-6}",
            {"assert": {"equal": {"left": "a", "right": "b", "eps": 1e-6}}},
        ),
        (
            "assert: all: [{exists: a}, {not: {exists: b}}]",
            {"assert": {"all": [{"exists": "a"}, {"not": {"exists": "b"}}]}},
        ),
        (
            "copy: from: [*p, $i, ~x::[0-9]+, ${i}], to: q",
            {"copy": {"from": ["*p", "$i", "~x::[0-9]+", "${i}"], "to": "q"}},
        ),
        ("dump: target: w::[:, :10], format: json", {"dump": {"target": "w::[:, :10]", "format": "json"}}),
        (r"dump: target: h.(\d+)\.(a|b), format: json", {"dump": {"target": r"h.(\d+)\.(a|b)", "format": "json"}}),
        ("dump: target: h.[0-9]{1,2}.w", {"dump": {"target": "h.[0-9]{1,2}.w"}}),
        ("""copy: from: "a,b", to: 'c:d'""", {"copy": {"from": "a,b", "to": "c:d"}}),
        (r"a: k: C:\x", {"a": {"k": r"C:\x"}}),
        ("a: k: x#y", {"a": {"k": "x#y"}}),
        ("a: k: a'b'", {"a": {"k": "a'b'"}}),
        ("é: a: 1", {"é": {"a": 1}}),
    ],
)  # fmt: skip
def test_what_the_reference_reads_is_read_alike(line: str, step: Any) -> None:
    assert read(line) == step


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("help: copy", {"help": "copy"}),
        ("load: x.pt", {"load": "x.pt"}),
        ("load: base::x.pt", {"load": "base::x.pt"}),
        ("load: 'C:/x.pt'", {"load": "C:/x.pt"}),
        ("a: [1, [], {}]", {"a": [1, [], {}]}),
        ("a: k: 'it''s', l: ''''", {"a": {"k": "it's", "l": "'"}}),
        (r'a: k: "\u0041\x42\U0001f600\t\"\\"', {"a": {"k": 'AB\U0001f600\t"\\'}}),
        ("a: 'x y': 1, 0: 2", {"a": {"x y": 1, "0": 2}}),
        ("a: {0: x, '': y}", {"a": {"0": "x", "": "y"}}),
        ("a: k: .inf, l: -.inf", {"a": {"k": math.inf, "l": -math.inf}}),
        (r"a: k: x\(y, l: x[(]y", {"a": {"k": r"x\(y", "l": "x[(]y"}}),
    ],
)
def test_what_the_reference_cannot_say_can_be_said(line: str, step: Any) -> None:
    assert read(line) == step


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("FALSE", False), ("null", None), ("NULL", None), ("~", None), ("0", 0), ("-12", -12),
        ("1.", 1.0), ("-1.5", -1.5), (".5", 0.5), ("1e3", 1e3), ("1.e3", 1e3), ("1E+3", 1e3), ("1e-6", 1e-6),
    ],
)  # fmt: skip
def test_a_bare_text_that_looks_like_a_value_is_one(text: str, value: Any) -> None:
    found = read(f"a: k: {text}")["a"]["k"]
    assert (found, type(found)) == (value, type(value))


def test_a_not_a_number_is_a_number() -> None:
    assert math.isnan(read("a: k: .nan")["a"]["k"])


@pytest.mark.parametrize(
    "text", ["Null", "007", "+1", "1_000", "0x10", ".5e3", "inf", "nan", "yes", "1e", "٣", "9" * 5000]
)
def test_everything_else_is_text(text: str) -> None:
    assert read(f"a: k: {text}") == {"a": {"k": text}}


def test_quotes_keep_a_text_a_text() -> None:
    assert read("""a: k: '1', l: "true", m: ''""") == {"a": {"k": "1", "l": "true", "m": ""}}


# --- where things stand


def test_every_key_and_value_has_its_column() -> None:
    node = parse_oly("copy: from: [a, 'b'], to: {x: y}", "<prompt>", 3)
    columns = {path: span.col for path, span in spans(node).items()}
    assert {(span.file, span.line) for span in spans(node).values()} == {("<prompt>", 3)}
    assert columns == {
        (): 1, ("@key", "copy"): 1, ("copy",): 7,
        ("copy", "@key", "from"): 7, ("copy", "from"): 13, ("copy", "from", 0): 14, ("copy", "from", 1): 17,
        ("copy", "@key", "to"): 23, ("copy", "to"): 27, ("copy", "to", "@key", "x"): 28, ("copy", "to", "x"): 31,
    }  # fmt: skip


def test_a_payload_that_is_not_written_stands_where_its_op_stands() -> None:
    node = parse_oly(" exit:")
    assert isinstance(node, Map)
    assert get(node, "exit") == Scalar(None, "", Span("<line>", 1, 2))


def test_a_scalar_keeps_how_it_was_written() -> None:
    assert parse_oly("exit") == Scalar("exit", "exit", Span("<line>", 1, 1))
    assert spans(parse_oly("help: 1e-6"))["help",] == Span("<line>", 1, 7)


def test_a_mistake_in_a_step_is_shown_in_its_line() -> None:
    root = compose("inputs: [m::m.safetensors]\ntransforms: []", "plan.yaml")
    assert isinstance(root, Map)
    node = List((parse_oly("scale_: target: w, bye: 2", "<prompt>", 7),), Span("<prompt>", 7, 1))
    entries = tuple((k, node if k.text == "transforms" else v) for k, v in root.entries)
    (problem,) = api.parse_document(Map(entries, root.span)).problems
    assert problem.span == Span("<prompt>", 7, 25)


# --- mistakes


@pytest.mark.parametrize(
    ("line", "col", "message", "hint"),
    [
        ("", 1, "the line is empty", "delete: target: tmp"),
        (" \t", 3, "the line is empty", "delete: target: tmp"),
        ("1copy: from: a", 1, "but '1copy' is not an op", "Write the op first"),
        ("a.b: c: 1", 1, "but 'a.b' is not an op", "Write the op first"),
        ("- a: k: 1", 1, "but '-' is not an op", "leave out the dash"),
        ("copy from: x", 6, "a ':' is missing between 'copy' and 'from: x'", "`copy: from: x`"),
        ("copy: from x", 12, "'x' follows the value 'from'", "Write `from: x`"),
        ("copy: from: x, to y", 19, "the key 'to' has no ':' behind it, before 'y'", "`to: VALUE`"),
        ("copy: from: x, to", 18, "the key 'to' has no ':' behind it", "`to: VALUE`"),
        ("copy: from: x to: y", 15, "a comma is missing before 'to'", "Write `from: x, to: y`."),
        ("copy: from: x,", 14, "nothing follows this comma", "Remove it"),
        ("copy: {from: x,}", 15, "nothing follows this comma", "Remove it"),
        ("a: k: [1, 2,]", 12, "nothing follows this comma", "Remove it"),
        ("assert: equal: left: a, right: b", 22, "'left:' is a value here", "needs braces"),
        ("assert: all: [exists: a]", 23, "'exists: a' is in the list opened in column 14", "{exists: a}"),
        ("copy: from: [a, to: b", 21, "'to: b' is in the list opened in column 13", "Close the list"),
        ("a: k:", 6, "'k' needs a value, but found the end of the line", "`null`"),
        ("a: k:, l: 1", 6, "'k' needs a value, but found ','", "`null`"),
        ("a: k: [,1]", 8, "'k' needs a value, but found ','", "`null`"),
        ("a: {, k: 1}", 5, "expected a key, but found ','", "in quotes"),
        ("copy: from: a, from: b", 16, "the key 'from' occurs twice, in column 7 and here", "Remove one"),
        ("a: 'k': 1, k: 2", 12, "the key 'k' occurs twice", "Remove one"),
        ("copy: {from: x} z", 17, "'z' follows the value '{from: x}'", "comma between two values"),
        ("a: k: [a, b", 7, "the '[' opened here is never closed", "Close it with ']'"),
        ("a: {b: 1", 4, "the '{' opened here is never closed", "Close it with '}'"),
        ("a: k: h.(a, l: 1", 9, "the '(' opened here is never closed", "quote a text"),
        ('a: k: "a', 7, 'the quote " opened here is never closed', r"\""),
        ('a: k: "a\\', 7, 'the quote " opened here is never closed', r"\""),
        ("a: k: 'a''", 7, "the quote ' opened here is never closed", "''"),
        ("a: k: a], l: 1", 8, "this ']' closes nothing", "quote the text"),
        ("a: k: x # c", 9, "a '#' does not start a comment", "Remove the comment"),
        ("a: k: 'x' y", 11, "'y' follows the value", "quotes around a text with blanks"),
        ("copy: from: [a-z]+, to: y", 18, "'+, to: y' follows the value", "Quote a text that starts with a bracket"),
        ("a: b, c: 1", 5, "', c: 1' follows the value 'b'", "keys with their values"),
        (r'a: k: "h\.0"', 9, r"'\.' is no escape", "In single quotes a backslash is a backslash"),
        (r'a: k: "\ud800"', 8, r"'\ud800' stands for no character", "hexadecimal digits"),
        (r'a: k: "\x00"', 8, r"'\x00' stands for no character", "of a character"),
        (r'a: k: "\0"', 8, r"'\0' is no escape", "write it twice"),
        (r'a: k: "\x4"', 8, "stands for no character", "the 2 hexadecimal digits"),
        ("copy: from: a\nto: b", 14, "U+000A is not allowed in a line", "A step is one line"),
        ("copy: from: a\x07", 14, "U+0007 is not allowed in a line", "Remove it"),
        ("a: " + "[" * 60, 54, "nested more than 50 deep", "Nest less deeply"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_in_its_column_with_what_to_do(line: str, col: int, message: str, hint: str) -> None:
    found = mistake(line)
    assert found.span == Span("<line>", 1, col)
    assert message in found.message
    assert hint in found.hint


@given(st.text(max_size=20) | st.text("ab:,[]{}()'\"\\ u0#", max_size=30))
def test_any_line_is_a_step_or_one_mistake_in_it(line: str) -> None:
    try:
        node = parse_oly(line)
    except PlanError as error:
        (found,) = error.diagnostics
        assert found.span is not None
        assert 1 <= found.span.col <= len(line) + 1
        assert found.hint
    else:
        assert all(1 <= span.col <= len(line) for span in spans(node).values())


# --- there and back


@given(steps)
def test_what_is_written_reads_back_as_the_same_step(step: Any) -> None:
    assert read(to_oly(step)) == step


@given(scalars)
def test_what_is_written_keeps_its_type(value: Any) -> None:
    found = read(to_oly({"a": {"k": value}}))["a"]["k"]
    assert type(found) is type(value)


@given(steps)
def test_writing_what_was_read_gives_the_same_line(step: Any) -> None:
    line = to_oly(step)
    assert to_oly(read(line)) == line


@given(st.text("ab:,[]{}()'\"\\ u0#", max_size=30))
def test_a_line_that_can_be_read_keeps_its_meaning_when_it_is_written_anew(line: str) -> None:
    try:
        step = read(line)
    except PlanError:
        return
    assert read(to_oly(step)) == step


def test_a_written_line_has_no_quotes_that_it_does_not_need() -> None:
    step = {"a": {"b": r"h\.(\d+)::[:, 0]", "c": ["*xs", "${i+1}"], "d": 1e-6, "e": "a b", "f": "8", "g": "h:"}}
    line = r"a: b: h\.(\d+)::[:, 0], c: [*xs, ${i+1}], d: 1e-06, e: 'a b', f: '8', g: 'h:'"
    assert to_oly(step) == line


def test_a_payload_that_would_read_as_keys_is_quoted() -> None:
    assert to_oly({"load": "C:/x"}) == "load: 'C:/x'"
    assert to_oly({"load": "c::x"}) == "load: c::x"


def test_characters_that_do_not_print_are_written_as_escapes() -> None:
    assert to_oly({"a": '\n"\\\x85\u2028'}) == r'a: "\n\"\\\x85\u2028"'


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (3, "a step is a name"),
        ({}, "a step is a name"),
        ({"a": 1, "b": 2}, "a step is a name"),
        ({"a": {1: 2}}, "a key must be a text, not 1"),
        ({"a": object}, "one line cannot say"),
        ({"a": "\ud800"}, "half a character"),
        ({"a": "\0"}, r"U\+0000"),
        ({"a": 10**1000}, "one line cannot say"),
        ({"a": 10**5000}, "."),
    ],
)
def test_what_a_line_cannot_say_is_refused(step: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_oly(step)


def test_what_is_nested_too_deeply_is_neither_read_nor_written() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert read(to_oly({"a": deep})) == {"a": deep}
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        to_oly({"a": [deep]})
    assert "nested more than 50 deep" in mistake(f"a: [{deep}]").message


# --- OLY and YAML


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_example_of_every_op_is_the_same_step_in_either_form(text: str) -> None:
    node = compose(text, "plan.yaml")
    assert node is not None
    assert_same_step(parse_oly(to_oly(plain(node))), node)


def test_a_formula_needs_no_quotes() -> None:
    node = parse_oly(r'move: from: h.(\d+).(.*), to: g.${\1+1}.${replace(\2, ".", "_")}')
    assert plain(node) == {"move": {"from": r"h.(\d+).(.*)", "to": r'g.${\1+1}.${replace(\2, ".", "_")}'}}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_the_steps_of_every_plan_are_the_same_in_either_form(path: Path) -> None:
    steps = get(read_plan_files([str(path)]).root, "transforms")
    for node in steps.items if isinstance(steps, List) else ():
        assert_same_step(parse_oly(to_oly(plain(node))), node)


@given(steps)
def test_a_step_goes_from_yaml_to_a_line_and_back(step: Any) -> None:
    node = compose(dump_yaml(step), "plan.yaml")
    assert node is not None
    again = compose(dump_yaml(read(to_oly(plain(node)))), "plan.yaml")
    assert again == node
