r"""Formulas in templates: `${...}` computes with captures as Python would, and says where it is wrong."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brainsurgery_jax.select import RefError, compile_pattern, compile_template

REGEX, TOKENS = r"h\.(?P<i>\d+)\.(?P<rest>.*)", ("h", "$i", "*rest")


def renamed(source: str | tuple[str, ...], target: str | tuple[str, ...], name: str) -> str:
    pattern = compile_pattern(source)
    binding = pattern.match(name)
    assert binding is not None
    return compile_template(target, pattern).fill(name, binding)


def refused(target: str | tuple[str, ...], source: str | tuple[str, ...] = REGEX) -> RefError:
    with pytest.raises(RefError) as caught:
        compile_template(target, compile_pattern(source))
    return caught.value


@pytest.mark.parametrize(
    ("formula", "result"),
    [
        ("i", "05"),
        ("(i)", "05"),
        ("i+0", "5"),
        ("2*i+1", "11"),
        ("2*(i+1)", "12"),
        ("i//2", "2"),
        ("i%3", "2"),
        ("-i+7", "2"),
        ("10-i-1", "4"),
        ("10-(i-1)", "6"),
        ("-(1-i)*2", "8"),
        ("7-+-i", "12"),
        (r"i:03d", "005"),
        ("i + 7 : 02d", "12"),
        ("i+100:02d", "105"),
        ("replace(rest, '.', '_')", "attn_W_bias"),
        ('replace(rest, ".", "")', "attnWbias"),
        ("lower(rest)", "attn.w.bias"),
        ("upper(replace(rest, 'attn.', ''))", "W.BIAS"),
        ("replace(rest, 'W', ':}')", "attn.:}.bias"),
        ("replace(i, '0', '1') + 1", "16"),
        ("replace(i*3, '1', '2')", "25"),
    ],
)
def test_regexes_and_lists_of_tokens_compute_alike(formula: str, result: str):
    assert renamed(REGEX, f"x.${{{formula}}}", "h.05.attn.W.bias") == f"x.{result}"
    assert renamed(TOKENS, ("x", f"${{{formula}}}"), "h.05.attn.W.bias") == f"x.{result}"


def test_dots_become_underscores_in_one_step():
    assert renamed("(.*)", r'${replace(\1, ".", "_")}', "a.b.c") == "a_b_c"
    assert renamed(".*", r'ema_${replace(\g<0>, ".", "_")}', "a.b.c") == "ema_a_b_c"
    assert renamed(("*xs",), ("${replace(xs, '.', '_')}",), "a.b.c") == "a_b_c"


def test_groups_without_a_name_are_computed_with_by_number():
    assert renamed(r"h\.(\d+)\.(.*)", r"g.${\1-1}.\2", "h.3.w") == "g.2.w"
    assert renamed(r"h\.(?P<i>\d+)", r"g.${\g<i>*\g<1>}", "h.3") == "g.9"


def test_a_capture_may_be_called_like_a_function():
    assert renamed(r"(?P<lower>\d+)", r"x.${lower+lower(lower)}", "4") == "x.8"


# --- Against Python ---------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """A formula, and the same for Python."""

    text: str
    python: str


def _joined(parts: tuple[Made, str, Made]) -> Made:
    left, operator, right = parts
    return Made(f"{left.text} {operator} {right.text}", f"{left.python} {operator} {right.python}")


def _call(parts: tuple[Made, str, str]) -> Made:
    inner, old, new = parts
    return Made(f"replace({inner.text}, '{old}', '{new}')", f"number(str({inner.python}).replace('{old}', '{new}'))")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(text)
    return int(text)


LEAVES = st.sampled_from([Made("i", "i"), Made(r"\2", "n")]) | st.integers(0, 99).map(lambda n: Made(str(n), str(n)))
FORMULAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(_joined)
        | inner.map(lambda made: Made(f"({made.text})", f"({made.python})"))
        | inner.map(lambda made: Made(f"-{made.text}", f"-{made.python}"))
        | st.tuples(inner, st.sampled_from("0123456789"), st.sampled_from(["", "7", "12"])).map(_call)
    ),
    max_leaves=8,
)


@given(FORMULAS, st.integers(0, 999), st.integers(0, 999), st.integers(1, 9))
def test_a_formula_gives_what_python_gives(made: Made, i: int, n: int, width: int):
    assume("i" in made.text or r"\2" in made.text)
    try:
        expected = eval(made.python, {"i": i, "n": n, "str": str, "number": _number})
    except (ZeroDivisionError, ValueError):  # the latter: digits are missing, or a sign is among them
        expected = -1
    template = compile_template(f"x.${{{made.text}:0{width}d}}", compile_pattern(r"(?P<i>\d+)\.(\d+)"))
    try:
        found = template.fill(f"{i}.{n}", (str(i), str(n)))
    except RefError as bad:
        assert bad.code == "template-arithmetic"
        assert expected < 0 or "more than 36 digits" in bad.message
    else:
        assert found == f"x.{expected:0{width}d}"


@given(st.text("ab.W", max_size=9), st.text("ab.", min_size=1, max_size=2), st.text("_x.", max_size=2))
def test_replacing_gives_what_python_gives(text: str, old: str, new: str):
    assert renamed("x(.*)", rf"n${{replace(\1, '{old}', '{new}')}}", f"x{text}") == "n" + text.replace(old, new)


@given(st.text("i1+-*/%(),'x:0d ", max_size=12))
def test_every_text_is_a_formula_or_refused_at_its_place(text: str):
    try:
        template = compile_template(f"x.${{{text}}}", compile_pattern("(?P<i>.)(?P<x>.)"))
    except RefError as bad:
        assert bad.code in ("template-syntax", "template-group")
        return
    try:
        assert template.fill("34", ("3", "4")).startswith("x.")
    except RefError as bad:
        assert bad.code in ("template-arithmetic", "template-length")


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "expected a capture or a number at character 1, found the end"),
        ("i+", "expected a capture or a number at character 3, found the end"),
        ("i+*2", r"expected a capture or a number at character 3, found '\*'"),
        ("i 4", "expected an operator at character 3, found '4'"),
        ("(i", r"expected '\)' at character 3, found the end"),
        ("i)", r"expected an operator at character 2, found '\)'"),
        ("i ^ 2", r"'\^' has no meaning at character 3"),
        ("i/2", "'/' has no meaning at character 2"),
        ("i+9999999999999999999", "expected at most 18 digits at character 3"),
        ("replace(rest)", "expected ',' and the text to replace at character 13, found '\\)'"),
        ("replace(rest, '.')", "expected ',' and the text to put there at character 18, found '\\)'"),
        ("replace(rest, '', 'x')", "expected the text to replace, in quotes, at character 15, found the text ''"),
        ("replace(rest, i, 'x')", "expected the text to replace, in quotes, at character 15, found 'i'"),
        ("lower(rest, 'x')", r"expected '\)' at character 11, found ','"),
        ("'a'", "expected a capture or a number at character 1, found the text 'a'"),
        ("i:3", "expected how many digits, such as ':03d', at character 2, found ':3'"),
        ("i:.2f", "expected how many digits"),
        (r"\0", "has no meaning at character 1"),
    ],
)
def test_a_mistake_is_told_with_its_place(formula: str, message: str):
    found = refused(f"x.${{{formula}}}")
    assert found.code == "template-syntax"
    assert re.search(f"is not a formula: .*{message}", found.message), found.message
    assert "Between the braces" in found.hint


def test_a_misspelt_function_brings_a_suggestion_and_the_list():
    found = refused("${replce(rest, '.', '_')}")
    assert found.message.endswith("there is no function 'replce'. Did you mean 'replace'?")
    assert found.hint == "There are: replace(x, 'old', 'new'), lower(x), upper(x)."


@pytest.mark.parametrize("text", ["1", "1-1", "2+3", "lower(3)"])
def test_that_a_digit_is_no_capture_is_told_with_what_is(text: str):
    found = refused(f"x.${{{text}}}")
    assert "it contains no capture" in found.message
    assert found.hint.startswith(r"Digits are numbers here. A group of the pattern is '\1'")


@pytest.mark.parametrize("target", ["${replace(i, 'a}", '${replace(i, "}'])
def test_a_quote_must_be_closed(target: str):
    assert "has a quote that is not closed" in refused(target).message


@pytest.mark.parametrize(("target", "source"), [(r"${\3+1}", REGEX), ((r"${\1+1}",), TOKENS), ("${j*2}", REGEX)])
def test_a_capture_that_there_is_not_is_named(target: str | tuple[str, ...], source: str | tuple[str, ...]):
    assert refused(target, source).code == "template-group"


def test_a_run_of_segments_is_text_for_a_function_and_no_number():
    assert renamed(TOKENS, ("${upper(rest)}",), "h.1.a.b") == "A.B"
    assert refused(("${rest}",), TOKENS).code == "template-kind"
    assert refused(("${rest+1}",), TOKENS).code == "template-kind"


@pytest.mark.parametrize("formula", ["7//i", "7%i", "7//(i*2)"])
def test_division_by_zero_is_told_with_the_name(formula: str):
    with pytest.raises(RefError, match=r"divides by 0, for the name 'h\.0\.w'") as caught:
        renamed(REGEX, f"x.${{{formula}}}", "h.0.w")
    assert caught.value.code == "template-arithmetic"


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_products_end_at_36_digits():
    nines = "9" * 18
    assert renamed(REGEX, "${i*i}.w", f"h.{nines}.w") == f"{int(nines) ** 2}.w"
    with pytest.raises(RefError, match="gives a number of more than 36 digits"):
        renamed(REGEX, "${i*i*i}.w", f"h.{nines}.w")


def test_a_text_that_grows_beyond_every_name_is_stopped_on_its_way():
    grow = "replace(" * 20 + "rest" + ", 'a', 'aaaaaaaaaa')" * 20
    with pytest.raises(RefError, match="gives a text of more than 4,096 characters") as caught:
        renamed(REGEX, f"${{replace({grow[8:]}}}", "h.0.aaaa")
    assert caught.value.code == "template-length"


def test_formulas_are_of_bounded_length_and_depth():
    assert refused("${" + "+".join(["i"] * 600) + "}").code == "template-length"
    deep = "${" + "(" * 21 + "i" + ")" * 21 + "}"
    assert "more than 20 parentheses are open at character 22" in refused(deep).message
    assert renamed(REGEX, "${" + "(" * 20 + "i" + ")" * 20 + "}", "h.7.w") == "7"
    assert renamed(REGEX, "${" + "-" * 900 + "i}", "h.7.w") == "7"
