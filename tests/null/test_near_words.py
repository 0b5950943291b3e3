"""What a word that is not known may have meant."""

from __future__ import annotations

import pytest

import brainsurgery_jax.ops  # noqa: F401  (says which ops there are)
from brainsurgery_jax.api import load
from brainsurgery_jax.errors import Refusal, did_you_mean, nearest_word
from brainsurgery_jax.expression.functions import FUNCTIONS
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.parse import _OTHER_WORDS, nearest_op


@pytest.mark.parametrize("word", ["ravel", "conv", "argx", "dim", "size"])
def test_a_short_word_is_no_misspelling_of_another(word: str) -> None:
    assert nearest_word(word, FUNCTIONS, ours=True) is None


@pytest.mark.parametrize(
    ("word", "meant"), [("srqt", "sqrt"), ("sqr", "sqrt"), ("meann", "mean"), ("Mean", "mean"), ("softmx", "softmax")]
)
def test_a_short_word_may_lack_a_letter_or_have_two_swapped(word: str, meant: str) -> None:
    assert nearest_word(word, FUNCTIONS, ours=True) == meant


@pytest.mark.parametrize(
    ("word", "meant"),
    [("rename", "move"), ("drop", "delete"), ("cat", "concat"), ("mm", "matmul"), ("clip", "clamp"), ("Rename", "move"),
     ("dlete", "delete"), ("xyzzy", None)],
)  # fmt: skip
def test_an_op_is_found_by_what_other_tools_call_it(word: str, meant: str | None) -> None:
    assert nearest_op(word, [*OPS, *ASSERTS]) == (f" Did you mean '{meant}'?" if meant else "")


def test_the_words_of_others_are_none_of_ours_and_mean_ops() -> None:
    assert not set(_OTHER_WORDS) & set(OPS)
    assert set(_OTHER_WORDS.values()) <= set(OPS)


def test_the_page_of_an_op_is_found_by_them_too() -> None:
    with pytest.raises(Refusal, match=r"there is no op 'rename'\. Did you mean 'move'\?"):
        pages.find("rename")


def test_names_of_tensors_may_differ_in_any_letter() -> None:
    assert did_you_mean("idz", ["ids", "mask"]) == " Did you mean 'ids'?"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("bf166", "'bf16'"), ("bfloat", "'bfloat16'"), ("bf-16", "'bfloat16'"),
     ("fp8", "'float8_e5m2' or 'float8_e4m3fn'"), ("e4m3", "'float8_e4m3fn' or 'float8_e4m3fnuz'"),
     ("torch.half", "'float16'")],
)  # fmt: skip
def test_a_dtype_that_is_not_known_is_near_one_of_its_words(word: str, meant: str) -> None:
    (problem,) = load({"inputs": ["m.safetensors"], "transforms": [{"cast_": {"target": "w", "to": word}}]}).problems
    assert problem.message.endswith(f" Did you mean {meant}?")
