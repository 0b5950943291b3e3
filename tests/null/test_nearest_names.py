"""What is suggested for a pattern that matches nothing: a name, or a pattern that does match."""

from __future__ import annotations

import pytest

from brainsurgery_jax.lower.hints import nearest
from brainsurgery_jax.select import compile_pattern
from tests.null.world import Headers, found

NAMES = [
    f"model.layers.{i}.{rest}"
    for i in range(12)
    for rest in ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "mlp.c_proj.weight", "input_layernorm.weight")
] + ["model.embed_tokens.weight", "lm_head.weight", "odd[0].w"]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (r".*c_porj\.weight", r".*c_proj\.weight"),
        (r".*\.c_porj\.weight", r".*\.c_proj\.weight"),
        (r"(.*)\.c_porj\.weight", r"(.*)\.c_proj\.weight"),
        (r".+c_porj\.wieght", r".+c_proj\.weight"),
        (r".*input_layer_norm.*", r".*input_layernorm.*"),
        (r"modle\.layers\..*", r"model\.layers\..*"),
        (r".*\.selfattn\.(q|k)_proj\.weight", r".*\.self_attn\.q_proj\.weight"),
        (r".*odd\[1\]\.w", r".*odd\[0\]\.w"),
        (("*rest", "c_porj", "weight"), ("*rest", "c_proj", "weight")),
        (("*a", "c_porj", "*b"), ("*a", "c_proj", "*b")),
    ],
)
def test_around_a_wildcard_the_nearest_part_of_a_name_is_suggested(pattern: str, meant: str):
    shown = f"'{meant}'" if isinstance(meant, str) else str(list(meant))
    assert nearest(pattern, NAMES) == f" Did you mean {shown}?"
    assert compile_pattern(meant).matches(NAMES)


def test_without_a_wildcard_the_nearest_name_is_suggested():
    assert nearest(r"lm_haed\.weight", NAMES) == " Did you mean 'lm_head.weight'?"


@pytest.mark.parametrize("pattern", [".*", ".*xyzzy", r"(.*)\.plugh\..*", "xyzzy", ("*rest",)])
def test_what_is_like_nothing_suggests_nothing(pattern: str):
    assert nearest(pattern, NAMES) == ""


def test_the_message_of_a_step_holds_it():
    world = Headers({"m.safetensors": dict.fromkeys(NAMES, "f32[2]")})
    (problem,) = found({"delete": {"target": r".*c_porj\.weight"}}, world=world)
    assert problem.message.endswith(r"Did you mean '.*c_proj\.weight'?")


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (r".*q_proj\.bias[:16]", r".*q_proj\.bias::[:16]"),
        ("lm_head.weight[0, :4]", "lm_head.weight::[0, :4]"),
        (r".*\.layers\.[0-9]", None),  # a class of characters
        (r".*[0]", None),
    ],
)
def test_a_slice_that_is_not_set_off_is_named(pattern: str, meant: str | None):
    (problem,) = found(
        {"delete": {"target": pattern}}, world=Headers({"m.safetensors": dict.fromkeys(NAMES, "f32[2]")})
    )
    told = f"A slice is set off by '::': '{meant}'."
    assert (problem.hint == told) == (meant is not None)
