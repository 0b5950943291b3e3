"""References as a plan writes them: text, lists of tokens, mappings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.select import Range, Ref, RefError, SliceSpec, parse_ref, parse_slice

ALIASES = st.text("ab :", min_size=1, max_size=3).filter(lambda text: "::" not in text and not text.endswith(":"))
NAMES = st.text("ab.[]:(*) ", min_size=1, max_size=5).filter(lambda text: "::" not in text and text[0] not in "[:")
BOUNDS = st.none() | st.integers(-9, 9)
INDICES = st.lists(st.integers(-9, 9) | st.builds(Range, BOUNDS, BOUNDS, BOUNDS), max_size=3).map(SliceSpec)


@pytest.mark.parametrize(
    ("text", "default", "alias", "name", "index"),
    [
        ("w", "m", "m", "w", None),
        ("a::w", "m", "a", "w", None),
        ("::w", "m", "m", "w", None),
        ("a::w", None, "a", "w", None),
        ("w::[0]", "m", "m", "w", "[0]"),
        ("a::w::[:, 1]", "m", "a", "w", "[:, 1]"),
        ("::w::[0]", "m", "m", "w", "[0]"),
        ("a::w::[0]", None, "a", "w", "[0]"),
        ("w::[]", "m", "m", "w", "[]"),
        ("w::[::2, 1]", "m", "m", "w", "[::2, 1]"),
        ("w::[0, 1::2, ::3]", "m", "m", "w", "[0, 1::2, ::3]"),
        ("a::w::[::2]", None, "a", "w", "[::2]"),
        ("a::[bc]w::[::2]", "m", "a", "[bc]w", "[::2]"),
        ("a::[bc]::[::2]", None, "a", "[bc]", "[::2]"),
        ("w:::[0]", "m", "w", ":[0]", None),
        (" a :: w ", "m", " a ", " w ", None),
    ],
)
def test_text_is_split_at_double_colons(text: str, default: str | None, alias: str, name: str, index: str | None):
    assert parse_ref(text, default) == Ref(alias, name, None if index is None else parse_slice(index))


def test_brackets_after_one_double_colon_are_a_slice_if_there_is_a_default_alias():
    with pytest.raises(RefError, match=r"'\[abc\]' is not a slice"):
        parse_ref("base::[abc]", "m")


@pytest.mark.parametrize("text", ["[abc]", "[a-z]", r"[\d]", "[0-9]+", "[^0]"])
def test_a_set_of_characters_behind_an_alias_is_a_regex_if_there_is_no_default_alias(text: str):
    assert parse_ref(f"w::{text}", None) == Ref("w", text)


@pytest.mark.parametrize("text", ["[0]", "[:, :32]", "[::2]", "[-1]", "[]", "[1:, 0]"])
def test_what_is_written_like_a_slice_is_one_with_or_without_a_default_alias(text: str):
    assert parse_ref(f"w::{text}", "m") == Ref("m", "w", parse_slice(text))
    with pytest.raises(RefError, match="has no alias") as caught:
        parse_ref(f"w::{text}", None)
    assert f"'ALIAS::w::{text}'" in caught.value.hint


@pytest.mark.parametrize("value", ["w", "::w", "::w::[0]", "w::[::2]", ["h", "$i"], {"name": "w"}])
def test_a_reference_without_alias_needs_a_default(value: object):
    with pytest.raises(RefError, match=r"has no alias, and there is no default alias[\s\S]*ALIAS") as caught:
        parse_ref(value, None)
    assert caught.value.code == "ref-no-alias"


def test_the_third_part_must_be_a_slice():
    with pytest.raises(RefError, match="third part, '0', is not a slice in brackets") as caught:
        parse_ref("a::w::0", "m")
    assert caught.value.code == "ref-parts"


@pytest.mark.parametrize("text", ["a::b::c::[0]", "a::b::c::d", "a::b::c::d::[::2]"])
def test_four_parts_are_too_many(text: str):
    with pytest.raises(RefError, match=r"has [45] parts"):
        parse_ref(text, "m")


@pytest.mark.parametrize("value", ["", "a::", "::", "::[0]", [], [""], {"alias": "a"}, {"name": ""}, {"name": []}])
def test_an_empty_name_is_refused(value: object):
    with pytest.raises(RefError, match=r"empty|at least one|no 'name'") as caught:
        parse_ref(value, "m")
    assert caught.value.code == "ref-empty"


@pytest.mark.parametrize("value", [3, None, 1.5, True, b"w"])
def test_only_text_lists_and_mappings_are_references(value: object):
    with pytest.raises(RefError, match="expected a reference to tensors, found") as caught:
        parse_ref(value, "m")
    assert caught.value.code == "ref-type"


def test_a_structured_reference_uses_the_default_alias():
    assert parse_ref(["h", "$i", "attn", "*rest"], "m") == Ref("m", ("h", "$i", "attn", "*rest"))


def test_tokens_are_text():
    with pytest.raises(RefError, match=r"token 0 of \['h', 0\] is not text\n.*'0'"):
        parse_ref(["h", 0], "m")


def test_a_mapping_gives_a_structured_name_an_alias_and_a_slice():
    ref = parse_ref({"alias": "a", "name": ["h", "$i"], "slice": "[::2]"}, None)
    assert ref == Ref("a", ("h", "$i"), parse_slice("[::2]"))


def test_a_name_in_a_mapping_may_hold_double_colons():
    assert parse_ref({"name": "a::b"}, "m") == Ref("m", "a::b")


def test_a_misspelt_key_is_named():
    with pytest.raises(RefError, match=r"no key 'slices'. Did you mean 'slice'"):
        parse_ref({"name": "w", "slices": "[0]"}, "m")


@pytest.mark.parametrize("value", [90, [0, 1]])
def test_a_slice_in_a_mapping_is_text_because_yaml_reads_1_30_as_90(value: object):
    with pytest.raises(RefError, match="must be text in quotes"):
        parse_ref({"name": "w", "slice": value}, "m")


def test_an_alias_in_a_mapping_is_text():
    with pytest.raises(RefError, match=r"'alias' of a reference must be text, found 1\n.*alias: '1'"):
        parse_ref({"name": "w", "alias": 1}, "m")


def test_a_literal_name_is_kept_as_it_is():
    assert parse_ref("a::h.0[x]", None, literal=True) == Ref("a", "h.0[x]")


@pytest.mark.parametrize("value", [["h", "0"], {"name": ["h", "0"]}])
def test_a_literal_name_is_no_list(value: object):
    with pytest.raises(RefError, match=r"literal name is expected\n.*full name"):
        parse_ref(value, "m", literal=True)


@pytest.mark.parametrize("text", ["a::w", "a::w::[0, ::2]", "a::h\\.(.*)::[]"])
def test_a_printed_reference_parses_to_itself(text: str):
    assert str(parse_ref(text, None)) == text


@given(ALIASES, NAMES, st.none() | INDICES)
def test_alias_name_and_slice_come_back_from_the_text_they_print_as(alias: str, name: str, index: SliceSpec | None):
    ref = Ref(alias, name.rstrip(":") or "x", index)
    assert parse_ref(str(ref), None) == ref


@given(ALIASES, st.text(min_size=1), st.none() | INDICES)
def test_a_mapping_can_say_every_reference(alias: str, name: str, index: SliceSpec | None):
    value = {"alias": alias, "name": name, "slice": None if index is None else str(index)}
    assert parse_ref(value, None) == Ref(alias, name, index)


def test_a_structured_reference_prints_its_tokens():
    assert str(parse_ref(["h", "$i"], "m")) == "m::[h, $i]"


def test_an_error_prints_its_hint_and_survives_a_copy():
    error = RefError("code", "what is wrong", "what to do")
    assert str(error) == "what is wrong\n    what to do"
    assert type(error)(*error.args).hint == "what to do"
