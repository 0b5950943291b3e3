r"""The way back from names: what a template could have made, and of which match."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brainsurgery_jax.select import RefError, compile_pattern, compile_template
from brainsurgery_jax.select.reach import reach_of

Source = str | tuple[str, ...]


def reached(source: Source, target: Source, *names: str) -> dict[str, str | None]:
    """The names in reach, and the match that each would be made of."""
    pattern = compile_pattern(source)
    return dict(reach_of(compile_template(target, pattern), pattern).of(names))


@pytest.mark.parametrize(
    ("source", "target", "name", "match"),
    [
        ("(.*)", r"\1", "a.b", "a.b"),
        (".*", r"\g<0>", "a.b", "a.b"),
        ("(?!lm_head).*", r"\g<0>", "a.b", "a.b"),
        (r"(.*)\.lora_A\.weight", r"\1.lora_B.weight", "x.y.lora_B.weight", "x.y.lora_A.weight"),
        (r"base_model\.model\.(.+)\.lora_A\.weight", r"\1.weight", "x.weight", "base_model.model.x.lora_A.weight"),
        (r"model\.(?P<head>.*)", r"\g<head>", "wte", "model.wte"),
        (r"h\.(\d+)\.(.*)", r"layers.\1.\2", "layers.3.w", "h.3.w"),
        (r"h\.(\d+)\.(.*)", r"\2.\1.\1", "w.3.3", "h.3.w"),
        (r"h\.(?P<i>\d+)\.(.*)", r"g.${i+4}.\2", "g.7.w", "h.3.w"),
        (r"h\.(?P<i>\d+)\.(.*)", r"g.${11-i:02d}.\2", "g.04.w", "h.7.w"),
        (r"h\.(?P<i>\d+)", r"${2*i}", "6", "h.3"),
        (r"^(?!.*bias)(.*)$", r"\1", "w", "w"),
        (("*xs", "w"), ("g", "*xs", "v"), "g.a.b.v", "a.b.w"),
        (("*xs", "w"), ("g", "*xs", "v"), "g.v", "w"),
        (("h", "$i", "*xs"), ("g", "$i", "*xs"), "g.1.a.b", "h.1.a.b"),
        (("h", "$i", "*xs"), ("g", "x${i+1}", "*xs"), "g.x4.a", "h.3.a"),
        (("h", "~i::[0-9]+"), ("$i",), "12", "h.12"),
        # The match cannot be told: the pattern holds what is no capture, or the template computes with texts.
        (r".+\.(o|down)_proj", r"\1.w", "o.w", None),
        (r"(a|b)?\.(.*)", r"\2", "w", None),
        ("(.*)", r'${replace(\1, ".", "_")}', "a_b", None),
        ("(.*)", r"${lower(\1)}", "a.b", None),
        (("~.*", "$i"), ("$i",), "7", None),
    ],
)
def test_a_name_in_reach_is_told_with_its_match(source: Source, target: Source, name: str, match: str | None):
    assert reached(source, target, name) == {name: match}


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        (r"(.*)\.lora_A\.weight", r"\1.lora_B.weight", "x.lora_B.bias"),
        (r"(.*)\.lora_A\.weight", r"\1.lora_BB.weight", "x.lora_B.weight"),
        (r"(q|k)\.w", r"\1.b", "v.b"),
        (r"(.*_proj)\.weight", r"\1.weight", "lm_head.weight"),
        (r"(?!.*bias)(.*)", r"\1", "x.bias"),
        (r"(?!lm_head).*", r"\g<0>", "lm_head.weight"),
        (r"h\.(\d+)\.(.*)", r"\2.\1.\1", "w.3.4"),
        (r"h\.(?P<i>[01])\.(.*)", r"g.${i+4}.\2", "g.7.w"),
        (r"h\.(?P<i>\d+)", r"${2*i}", "5"),
        (r"h\.(?P<i>\d+)", r"${i+4}", "3"),
        (("h", "$i"), ("g", "$i"), "g.1.w"),
        (("h", "~i::[0-9]+"), ("$i",), "x"),
        (("h.x", "$i"), ("$i",), "x"),
    ],
)
def test_a_name_that_no_match_could_make_is_out_of_reach(source: Source, target: Source, name: str):
    assert reached(source, target, name) == {}


@pytest.mark.parametrize(
    ("source", "target", "name", "match"),
    [
        (r"(.)(\1.*)", r"x.\2", "x.anything", None),
        (r"(.)((?:x|\1).*)", r"x.\2", "x.anything", None),
        ("(?P<x>.)((?P=x)*)", r"x.\2", "x.anything", None),
        ("(?i)a([b-c]*)", r"x.\1", "x.anything", None),
        ("(a)((?(1)b|c).*)", r"x.\2", "x.anything", None),
        ("((?i:a).*)x", r"x.\1", "x.Anything", "Anythingx"),
    ],
)
def test_groups_that_depend_on_their_surroundings_stand_for_any_text(source: str, target: str, name: str, match: str):
    assert reached(source, target, name) == {name: match}


SOURCES: list[tuple[Source, list[Source]]] = [
    (r"(?P<a>[ab]*)\.(?P<b>.*)", [r"\1.\2", r"\2.x.\1", r"\g<0>", r"\1\2", "y.${lower(b)}", r"\2"]),
    (r"h\.(?P<i>\d+)\.(.)", [r"\2.\1", "${i+1}", r"${3*i-1:02d}.\2", r"${i*i}.\2"]),
    (r"(?!b)([ab]+)(\d*).*", [r"\1", r"\2\1", r"\1.\2.\1"]),
    (("$a", "*b", "~c::[ab]"), [("$c", "*b", "$a"), ("*b", "x", "*b"), ("${upper(b)}",), ("$a",)]),
]


@given(
    st.sampled_from([(source, target) for source, targets in SOURCES for target in targets]),
    st.lists(st.text("abh.012", min_size=1, max_size=7), min_size=1, max_size=6),
)
def test_whatever_a_template_makes_is_in_its_reach(both: tuple[Source, Source], names: list[str]):
    source, target = both
    pattern = compile_pattern(source)
    template = compile_template(target, pattern)
    made: dict[str, str] = {}
    for name, binding in pattern.matches(names):
        try:
            made[template.fill(name, binding)] = name
        except RefError:
            continue
    assume(made)
    found = dict(reach_of(template, pattern).of(tuple(made)))
    for name in made:
        match = found[name]
        if match is not None:
            binding = pattern.match(match)
            assert binding is not None
            assert template.fill(match, binding) == name
