"""Templates: the names of destinations, made of what a pattern captured."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brainsurgery_jax.select import RefError, compile_pattern, compile_template

PARTS = st.sampled_from(
    ["a", "x.", "%s", "{}", r"\1", r"\2", r"\3", r"\10", r"\g<0>", r"\g<2>", r"\g<n>", "\\\\", "$.", "é"]
)
PIECES = st.sampled_from(["\\", "g", "<", ">", "0", "1", "3", "7", "n", "a", ".", "-", " "])
Source = str | tuple[str, ...]


def renamed(source: Source, target: Source, name: str) -> str:
    pattern = compile_pattern(source)
    binding = pattern.match(name)
    assert binding is not None
    return compile_template(target, pattern).fill(name, binding)


@pytest.mark.parametrize(
    ("source", "target", "name", "result"),
    [
        ("(.*)", r"x.\1", "a.w", "x.a.w"),
        (".*", r"x.\g<0>", "a.w", "x.a.w"),
        ("(.+)", r"x.\1", "a.w", "x.a.w"),
        ("^(.*)$", r"x.\1", "a.w", "x.a.w"),
        ("a|ab", "Z", "ab", "Z"),
        (r"h\.(\d+)\.(?P<rest>.*)", r"g.\g<rest>.\1", "h.3.w", "g.w.3"),
        ("(a)?b", r"x\1y", "b", "xy"),
        ("(.*)", r"\g<1>0", "a", "a0"),
        ("(.*)", r"\\\1", "a", r"\a"),
        ("(.*)", "50%.$x.{}", "a", "50%.$x.{}"),
        ("(.*)", r"50%s.\1", "a", "50%s.a"),
    ],
)
def test_renaming_expands_the_full_match(source: str, target: str, name: str, result: str):
    assert renamed(source, target, name) == result


@given(st.lists(PARTS, min_size=1, max_size=6).map("".join), st.text("ab", max_size=3))
def test_templates_expand_as_re_does(target: str, text: str):
    regex = "(a*)(?P<n>.)?(b*)"
    matched = re.fullmatch(regex, text)
    assume(matched is not None)
    assert matched is not None
    try:
        expected = matched.expand(target)
    except (re.error, IndexError):
        with pytest.raises(RefError, match=r"bad escape|asks for"):
            compile_template(target, compile_pattern(regex))
        return
    assume(expected != "")
    assert renamed(regex, target, text) == expected


@pytest.mark.filterwarnings("ignore:bad character in group name:DeprecationWarning")
@given(st.lists(PIECES, min_size=1, max_size=7).map("".join))
def test_an_accepted_template_is_one_that_re_reads_alike(target: str):
    pattern = compile_pattern("(?P<n>.)(.)")
    try:
        template = compile_template(target, pattern)
    except RefError:
        return
    matched = re.fullmatch("(?P<n>.)(.)", "ab")
    assert matched is not None
    assert template.fill("ab", ("a", "b")) == matched.expand(target)


@pytest.mark.parametrize(
    "target", [r"h\.x", r"\q", r"\n", r"\g", r"\g<", r"\g<>", r"\g<1", r"\g<-1>", r"\g<a b>", "x\\"]
)
def test_other_escapes_are_refused(target: str):
    with pytest.raises(RefError, match=r"has a bad escape[\s\S]*A template is not a pattern") as caught:
        compile_template(target, compile_pattern("(.*)"))
    assert caught.value.code == "template-syntax"


@pytest.mark.parametrize("target", [r"\0", r"\01", r"\101", r"\777"])
def test_octal_escapes_are_refused_because_group_0_was_meant(target: str):
    with pytest.raises(RefError, match=r"bad escape[\s\S]*'\\g<0>' is the whole name"):
        compile_template(target, compile_pattern("(.*)"))


@pytest.mark.parametrize("target", [r"\2", r"\10", r"\g<2>"])
def test_a_missing_group_is_named(target: str):
    with pytest.raises(RefError, match=r"asks for group \d+; the pattern '\(\.\*\)' has 1") as caught:
        compile_template(target, compile_pattern("(.*)"))
    assert caught.value.code == "template-group"


@pytest.mark.parametrize("target", [r"\g<layr>", "x${layr}", "${layr+1}"])
def test_a_missing_named_group_brings_a_suggestion(target: str):
    with pytest.raises(RefError, match=r"asks for 'layr'[\s\S]*captures layer;[\s\S]*Did you mean 'layer'") as caught:
        compile_template(target, compile_pattern("(?P<layer>.*)"))
    assert caught.value.code == "template-group"


@pytest.mark.parametrize("target", ["x", "$", "a.b", "\\\\"])
def test_a_template_without_captures_is_a_constant(target: str):
    template = compile_template(target, compile_pattern("(.*)"))
    assert template.literal == target.replace("\\\\", "\\")
    assert template.fill("any", ("any",)) == template.literal


@pytest.mark.parametrize("target", [r"\1", r"\g<0>"])
def test_a_template_with_captures_is_no_constant(target: str):
    assert compile_template(target, compile_pattern("(.*)")).literal is None


def test_an_empty_name_is_refused():
    with pytest.raises(RefError, match=r"'\\1' gives an empty name for 'b'"):
        renamed("(a?)b", r"\1", "b")
    with pytest.raises(RefError, match="the template is empty"):
        compile_template("", compile_pattern("a"))


@pytest.mark.parametrize(("source", "target"), [("a", ("a",)), (("a",), "a")])
def test_pattern_and_template_are_of_one_kind(source: Source, target: Source):
    with pytest.raises(RefError, match=r"are of different kinds[\s\S]*both as text") as caught:
        compile_template(target, compile_pattern(source))
    assert caught.value.code == "kinds-differ"


@pytest.mark.parametrize(
    ("target", "result"),
    [
        (("$i",), "7"),
        (("${i}",), "7"),
        (("block_${i}",), "block_7"),
        (("${i}_old",), "7_old"),
        (("${i}${r}",), "7x"),
        ((r"\${i}",), "7"),
        ((r"b\${i}",), "b7"),
        (("*xs",), "a.b"),
        (("g", "*xs", "$i"), "g.a.b.7"),
        (("*xs", "*xs"), "a.b.a.b"),
        (("g.h", "w"), "g.h.w"),
        (("$", "*", "~"), "$.*.~"),
        (("a$b", "c%s"), "a$b.c%s"),
        (("%s", "$i"), "%s.7"),
        (("a~b*c",), "a~b*c"),
    ],
)
def test_each_template_token_gives_its_part(target: tuple[str, ...], result: str):
    assert renamed(("h", "$i", "$r", "*xs"), target, "h.7.x.a.b") == result


def test_a_run_of_no_segments_leaves_no_dot_behind():
    assert renamed(("*xs", "w"), ("a", "*xs", "b"), "w") == "a.b"
    assert renamed(("*xs", "w"), ("*xs", "b"), "w") == "b"


def test_an_empty_segment_keeps_its_dots():
    assert renamed(("a", "*xs"), ("*xs", "b"), "a.") == ".b"


def test_a_template_of_nothing_but_an_empty_run_is_refused():
    with pytest.raises(RefError, match=r"\['\*xs'\] gives an empty name for 'w'"):
        renamed(("*xs", "w"), ("*xs",), "w")


@pytest.mark.parametrize("token", ["~a", "~x::a", "$1", "$i_+", "$i.w", "*1", "*i j"])
def test_a_bad_template_token_is_refused(token: str):
    with pytest.raises(RefError, match=r"is a regex|is not the name of a variable") as caught:
        compile_template((token,), compile_pattern(("$i",)))
    assert caught.value.code == "template-syntax"


@pytest.mark.parametrize("token", ["$j", "x${j}", "*j"])
def test_an_unknown_variable_is_refused(token: str):
    with pytest.raises(RefError, match=r"asks for 'j'.*\['\$i'\] does not capture") as caught:
        compile_template((token,), compile_pattern(("$i",)))
    assert caught.value.code == "template-group"


@pytest.mark.parametrize(
    ("token", "found"), [("$xs", "one segment"), ("a${xs}", "one segment"), ("*i", "a run of segments")]
)
def test_segments_and_runs_are_not_interchangeable(token: str, found: str):
    with pytest.raises(RefError, match=f"needs {found}") as caught:
        compile_template((token,), compile_pattern(("$i", "*xs")))
    assert caught.value.code == "template-kind"


def test_a_malformed_pattern_token_is_blamed_rather_than_the_template():
    with pytest.raises(RefError, match="' k' is not the name"):
        compile_template(("$n",), compile_pattern(("~n, k::(.)(.)",)))


@pytest.mark.parametrize(
    ("target", "result"),
    [
        ("layers.${i+4}", "layers.9"),
        ("layers.${i}", "layers.05"),
        ("layers.${n-1-i}", "layers.6"),
        ("layers.${ n - 1 - i }", "layers.6"),
        ("layers.${-i+n}", "layers.7"),
        ("layers.${i+i}", "layers.10"),
        ("${i-5}.w", "0.w"),
        (r"layers.\${i+4}", "layers.9"),
    ],
)
def test_captures_can_be_added_and_subtracted(target: str, result: str):
    assert renamed(r"h\.(?P<i>\d+)\.(?P<n>\d+)", target, "h.05.12") == result
    assert renamed(("h", "$i", "$n"), (target,), "h.05.12") == result


def test_sums_and_groups_go_together():
    assert renamed(r"h\.(?P<i>\d+)\.(.*)", r"g.${i+1}.\2", "h.1.w") == "g.2.w"
    assert renamed(("h", "~i::[0-9]+", "*rest"), ("g", "${i+1}", "*rest"), "h.1.w.b") == "g.2.w.b"


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_sums_are_exact(i: int, by: int):
    assert renamed(("$i",), (f"${{i+{by}}}",), str(i)) == str(i + by)


TERMS = st.sampled_from("in") | st.integers(0, 99).map(str)
SUMS = st.lists(st.tuples(st.sampled_from("+-"), TERMS), min_size=1, max_size=5)


@given(SUMS, st.integers(0, 999), st.integers(0, 999))
def test_sums_are_what_python_makes_of_them(terms: list[tuple[str, str]], i: int, n: int):
    text = "".join(sign + word for sign, word in terms)
    assume("i" in text or "n" in text)
    values = {"i": i, "n": n}
    total = sum(
        (-1 if sign == "-" else 1) * values.get(word, int(word) if word.isdigit() else 0) for sign, word in terms
    )
    assume(total >= 0)
    assume(len(terms) > 1)  # alone, a capture is put in as it was written
    assert renamed(("$i", "$n"), (f"x_${{{text}}}",), f"{i}.{n}") == f"x_{total}"


@pytest.mark.parametrize(("source", "target"), [("(?P<i>.)", "a${i"), (("$i",), ("a${i",))])
def test_a_brace_must_be_closed(source: Source, target: Source):
    with pytest.raises(RefError, match=r"has a '\$\{' without its '\}'"):
        compile_template(target, compile_pattern(source))


@pytest.mark.parametrize("name", ["q", "", "-1", "1.5", "²", "٣", "9" * 5000])
def test_only_whole_numbers_are_computed_with(name: str):
    template = compile_template("${i+1}", compile_pattern("(?P<i>.*)"))
    with pytest.raises(RefError, match=r"'\$\{i\+1\}' computes with .*, which is not a whole number") as caught:
        template.fill(name, (name,))
    assert caught.value.code == "template-arithmetic"


def test_a_negative_number_is_no_name():
    with pytest.raises(RefError, match=r"'\$\{i-4\}' gives -1 for the name 'h\.3'"):
        renamed(("h", "$i"), ("h", "${i-4}"), "h.3")


def test_a_name_that_doubles_in_every_step_ends():
    with pytest.raises(RefError, match=r"gives a name of 8,192 characters for 'a+'") as caught:
        renamed("(.*)", r"\1\1", "a" * 4096)
    assert caught.value.code == "template-length"
