"""`compute`: what its expressions mean, against numpy; what they refuse, and how that reads; how they run."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.errors import PlanError, Refusal
from brainsurgery_jax.expression.functions import FUNCTIONS
from brainsurgery_jax.expression.parse import MOST_CHARACTERS, MOST_LEVELS, parse_expression
from brainsurgery_jax.graph.expr import is_whole
from brainsurgery_jax.op import OPS
from brainsurgery_jax.world import Files
from tests.checkpoints import counting, normal, plan_of, problems, read, run_plan, set_block

BF16 = ml_dtypes.bfloat16
W, R = normal((4, 6), np.float64), normal((4,), np.float64, seed=1)


def formula(expr: str, **keys: Any) -> dict[str, Any]:
    """A step on the tensors that the expression names, each under its own name."""
    named = dict.fromkeys(sorted(parse_expression(expr).names))
    return {"compute": {"from": {name: name for name in named}, "expr": expr, "to": "out"} | keys}


def value(folder: Path, expr: str, **tensors: np.ndarray) -> np.ndarray:
    return run_plan(folder, tensors, formula(expr))["out"]


def hint(folder: Path, expr: str, **tensors: np.ndarray) -> str:
    """What the one diagnostic of an expression advises."""
    (error,) = problems(folder, tensors, {"compute": {"from": {n: n for n in tensors}, "expr": expr}})
    return error.hint


# --- Meaning ----------------------------------------------------------------------------------------------------------

MEANINGS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "w - outer(r, r @ w) / norm(r) ** 2": lambda w, r: w - np.outer(r, r @ w) / (r @ r),
    "w * r[:, None]": lambda w, r: w * r[:, None],
    "where(abs(w) >= quantile(abs(w), 0.5), w, 0) + 0 * r[0]": lambda w, r: np.where(abs(w) >= np.median(abs(w)), w, 0),
    "w / norm(w, axis=1, keepdims=True) + 0 * r[0]": lambda w, r: w / np.linalg.norm(w, axis=1, keepdims=True),
    "concat([w.T, stack(r, -r)], axis=0)": lambda w, r: np.vstack([w.T, r, -r]),
    "clip(w, -1, 1) @ w.T + diag(r)": lambda w, r: np.clip(w, -1, 1) @ w.T + np.diag(r),
    "reshape(w, (2, w.shape[0] // 2, -1))[0, -1] + r[1]": lambda w, r: w.reshape(2, 2, 6)[0, -1] + r[1],
    "transpose(w, (1, 0)) @ r": lambda w, r: w.T @ r,
    "softmax(w, axis=0) * r[..., None]": lambda w, r: np.exp(w) / np.exp(w).sum(0) * r[:, None],
    "eye(4) - 2 * outer(r, r) / dot(r, r) + 0 * sum(w)": lambda w, r: np.eye(4) - 2 * np.outer(r, r) / (r @ r),
    "tril(w, k=-1) + triu(w) * (r > 0)[:, None]": lambda w, r: np.tril(w, -1) + np.triu(w) * (r > 0)[:, None],
    "max(w, axis=(0, 1)) - min(w) + std(r) + var(r)": lambda w, r: w.max() - w.min() + r.std() + r.var(),
    "mean(w, axis=0) * r[0]": lambda w, r: w.mean(0) * r[0],
    "repeat(r, 2, axis=0) + arange(8) % 3 + 0 * sum(w)": lambda w, r: np.repeat(r, 2) + np.arange(8) % 3,
    "flip(w, axis=1) + sign(r)[:, None] * median(w, axis=1)[:, None]": lambda w, r: (
        w[:, ::-1] + np.sign(r)[:, None] * np.median(w, axis=1)[:, None]
    ),
    "((w > 0) & (w < 1) | ~(w != w)) * r[:, None]": lambda w, r: np.ones_like(w) * r[:, None],
    "sigmoid(w) + tanh(w) + exp(w) + log(w * w) + sqrt(abs(w)) + sum(r)": lambda w, r: (
        1 / (1 + np.exp(-w)) + np.tanh(w) + np.exp(w) + np.log(w * w) + np.sqrt(abs(w)) + r.sum()
    ),
    "floor(w) + ceil(w) + round(w) + sin(w) * cos(w) + maximum(w, minimum(r[0], 1))": lambda w, r: (
        np.floor(w) + np.ceil(w) + np.round(w) + np.sin(w) * np.cos(w) + np.maximum(w, min(r[0], 1))
    ),
    "take(w, arange(6) % 4, axis=0) * take(r, 3) + take(w, 1 + arange(6))": lambda w, r: (
        w[[0, 1, 2, 3, 0, 1]] * r[3] + w.reshape(-1)[1:7]
    ),
    "float32(r) + float64(r) + int8(r * 9) + int16(r * 9) + int32(r * 9) + int64(r * 9) + 0 * sum(w)": lambda w, r: (
        r.astype(np.float32) + r + 4 * (r * 9).astype(np.int8)
    ),
    "uint8(r * r) + uint16(r * r) + uint32(r * r) + (uint64(r * r * 9) << 3 >> 1) + 0 * sum(w)": lambda w, r: (
        3 * np.trunc(r * r) + 4 * np.trunc(r * r * 9)
    ),
    "arccos(tanh(w)) + arcsin(tanh(w)) + arctan2(w, r[:, None]) + log1p(w * w) + expm1(w) + erf(w)": lambda w, r: (
        np.pi / 2 + np.arctan2(w, r[:, None]) + np.log1p(w * w) + np.expm1(w) + scipy.special.erf(w)
    ),
    "nan_to_num(w / where(w > 0, 0, 1) * 0) + logsumexp(w, axis=1)[:, None] + prod(r)": lambda w, r: (
        np.log(np.exp(w).sum(1))[:, None] + r.prod() + 0 * w
    ),
    "where(any(w > 1, axis=1, keepdims=True), w, 0) + all(w > -9) * r[:, None]": lambda w, r: (
        w * (w > 1).any(axis=1, keepdims=True) + r[:, None]
    ),
    "argmax(w, axis=1) + 10 * argmin(w.T) + r": lambda w, r: w.argmax(1) + 10 * w.T.argmin() + r,
    "sort(w, axis=0) + argsort(w) + cumsum(w, axis=1) * cumsum(r)[3]": lambda w, r: (
        np.sort(w, 0) + np.argsort(w) + w.cumsum(1) * r.sum()
    ),
    "topk(w, 2) + 10 * argtopk(w, 2, axis=-1) + r[:, None]": lambda w, r: (
        -np.sort(-w)[:, :2] + 10 * np.argsort(-w)[:, :2] + r[:, None]
    ),
    "ranks(w, axis=0) + kth_largest(w, 3) + kth_largest(w, 2, axis=1, keepdims=True) + r[:, None]": lambda w, r: (
        scipy.stats.rankdata(w, axis=0) - 1 + np.sort(w, None)[-3] + np.sort(w)[:, -2:-1] + r[:, None]
    ),
    "sum_over(w) + stack_over(w)[0] * r[:, None] + concat_over(w[:2])[1]": lambda w, r: w + w * r[:, None] + w[1],
    "kron(r[:2], w) + roll(kron(r[:2], w), (1, -2), axis=(0, 1))": lambda w, r: (
        np.kron(r[:2], w) + np.roll(np.kron(r[:2], w), (1, -2), (0, 1))
    ),
    "(ones(4, 6) + zeros((4, 6)) + linspace(-1, 1, 6)) * einsum('i,ij->ij', r, w)": lambda w, r: (
        (1 + np.linspace(-1, 1, 6)) * r[:, None] * w
    ),
    "solve(w @ w.T, r) + inv(w @ w.T) @ r + pinv(w) [:4] @ r": lambda w, r: (
        2 * np.linalg.solve(w @ w.T, r) + np.linalg.pinv(w)[:4] @ r
    ),
    "cholesky(w @ w.T) * det(w @ w.T) + trace(w) * r": lambda w, r: (
        np.linalg.cholesky(w @ w.T) * np.linalg.det(w @ w.T) + w.trace() * r
    ),
    "qr(w)[0] @ qr(w)[1] + (qr(w)[0] * r) @ qr(w)[1]": lambda w, r: (
        w + (np.linalg.qr(w)[0] * r) @ np.linalg.qr(w)[1]
    ),
    "(svd(w)[0] * (svd(w)[1] + 1) + 0 * r) @ svd(w)[2]": lambda w, r: w + scipy.linalg.polar(w)[0],
    "(eigh(w @ w.T)[1] * sqrt(eigh(w @ w.T)[0])) @ eigh(w @ w.T)[1].T + 0 * r": lambda w, r: (
        scipy.linalg.sqrtm(w @ w.T)
    ),
    "matmul(w, w.T) - zeros_like(w) @ ones_like(w).T + isfinite(r) - isnan(r)": lambda w, r: w @ w.T + 1,
}  # fmt: skip


@pytest.mark.parametrize("expr", MEANINGS)
def test_an_expression_means_what_numpy_means_by_it(expr: str, tmp_path: Path) -> None:
    wanted = np.asarray(MEANINGS[expr](W, R), np.float64)
    found = value(tmp_path, expr, r=R, w=W)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_every_function_is_tried_above() -> None:
    used = {name for expr in MEANINGS for name in FUNCTIONS if f"{name}(" in expr}
    assert used == set(FUNCTIONS)


def test_every_function_is_named_in_the_documentation() -> None:
    assert set(FUNCTIONS) <= set(re.findall(r"\w+", OPS["compute"].doc))


WORDS = (
    "w", "r", "v", "1", "2", "-3", "0.5", "9", "None", "True", "...", " ", "+", "-", "*", "/", "//", "%", "**", "@",
    "(", ")", "[", "]", ",", ":", "<", "==", "&", "~", ".T", ".shape", ".real", "axis=", "k=", "lambda", "if", "else",
    "for", "in", "<<", ">>", "__class__", "{", "'", "#", "\\", "\n", "\x00", "é", *(f"{name}(" for name in FUNCTIONS),
)  # fmt: skip
SHAPES = {"w": (2, 3), "r": (3,), "v": (2, 1)}
ABSTRACT = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


OPERATORS = ("+", "-", "/", "//", "%", "**", "@", "<", "==", "&", "|", "<<", ">>")


def nested(terms: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Well-formed, but rarely meaningful."""
    several = st.lists(terms | st.sampled_from(["None", "(1, 0)", "axis=0", "axis=-1", "keepdims=True"]), max_size=3)
    call = st.builds("{}({})".format, st.sampled_from(list(FUNCTIONS)), several.map(", ".join))
    binary = st.builds("({} {} {})".format, terms, st.sampled_from(OPERATORS), terms)
    part = st.sampled_from([".T", ".shape", ".shape[0]", "[0]", "[-1]", "[:, ::2]", "[None]", "[..., 0]", "[9]"])
    return call | binary | st.builds("({}){}".format, terms, part)


SOUP = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
NESTED = st.recursive(st.sampled_from(["w", "r", "v", "0", "-1", "0.5", "2", "1e30", "True"]), nested, max_leaves=6)


@settings(max_examples=400)
@given(SOUP | NESTED | st.text(max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        found = parse_expression(text)
    except Refusal as bad:
        assert bad.code == "expression-syntax" and bad.hint
        return
    step = {"compute": {"from": {n: n for n in sorted(found.names)} or {"w": "w"}, "expr": text, "to": "out"}}
    try:
        bs.load({"transforms": [step]}).apply(ABSTRACT)
    except PlanError as bad:
        assert all(d.code in ("expression-name", "expression-value", "tensor-missing", "no-match", "dtypes-differ")
                   for d in bad.diagnostics)  # fmt: skip


class Term(NamedTuple):
    """An expression, and what numpy makes of it."""

    text: str
    value: Any


VALUES = {name: np.random.default_rng(len(name)).integers(-4, 5, shape) / 2 for name, shape in SHAPES.items()}
LEAVES = st.sampled_from([*(Term(n, x) for n, x in VALUES.items()), *(Term(str(n), n) for n in (0, 1, 2, 0.5, -3))])
BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "<": operator.lt, "==": operator.eq}
CALLS: dict[str, Callable[..., Any]] = {
    "abs({})": np.abs, "(-({}))": lambda x: -(x + 0.0), "tanh({})": np.tanh, "(({}) ** 2)": lambda x: (x + 0.0) ** 2,
    "sum({})": np.sum, "mean({}, keepdims=True)": lambda x: np.mean(x, keepdims=True), "norm({})": np.linalg.norm,
    "({} + w).T[-1]": lambda x: (x + VALUES["w"]).T[-1],
    "(({} + w)[:, ::2] @ v)": lambda x: (x + VALUES["w"])[:, ::2] @ VALUES["v"],
}  # fmt: skip


def grown(terms: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    binary = st.tuples(st.sampled_from(list(BINARY)), terms, terms).map(
        lambda t: Term(f"(1.0 * ({t[1].text} {t[0]} {t[2].text}))", (t[0], t[1], t[2]))
    )
    call = st.tuples(st.sampled_from(list(CALLS)), terms).map(lambda t: Term(t[0].format(t[1].text), t))
    choice = st.tuples(terms, terms, terms).map(lambda t: Term(f"where({t[0].text} > 0, {t[1].text}, {t[2].text})", t))
    return binary | call | choice


def by_numpy(term: Any) -> Any:
    """What numpy makes of a term, floats throughout. Raises ValueError where shapes do not fit."""
    match term:
        case Term(_, (str(op), Term() as a, Term() as b)):
            return BINARY[op](by_numpy(a), by_numpy(b)) + 0.0
        case Term(_, (str(form), Term() as a)):
            return CALLS[form](by_numpy(a)) + 0.0
        case Term(_, (Term() as c, Term() as a, Term() as b)):
            return np.where(by_numpy(c) > 0, by_numpy(a), by_numpy(b)) + 0.0
    return np.asarray(term.value, np.float64)


@settings(max_examples=60)
@given(st.recursive(LEAVES, grown, max_leaves=8))
def test_a_random_expression_gives_what_numpy_gives(term: Term) -> None:
    text = f"0 * (sum(w) + sum(r) + sum(v)) + 1.0 * ({term.text})"
    if max(len(text) / MOST_CHARACTERS, text.count("(") / MOST_LEVELS) > 0.9:
        return
    step = {"compute": {"from": {n: n for n in VALUES}, "expr": text, "to": "out"}}
    try:
        wanted = by_numpy(term)
    except ValueError:  # shapes that do not fit
        with pytest.raises(PlanError, match=r"expression-value"):
            bs.load({"transforms": [step]}).apply(ABSTRACT)
        return
    with jax.enable_x64(True):
        found = bs.load({"transforms": [step]}).apply(VALUES)["out"]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


# --- Where a result goes, and in which dtype --------------------------------------------------------------------------


def test_without_to_each_match_is_replaced(tmp_path: Path) -> None:
    tensors = {"h.0.w": W, "h.1.w": 2 * W, "scale": np.float64(3).reshape(())}
    step = {"compute": {"from": {"w": r"h\.\d+\.w", "s": "scale"}, "expr": "w / s"}}
    found = run_plan(tmp_path, tensors, step)
    assert list(found) == ["h.0.w", "h.1.w", "scale"]
    np.testing.assert_array_equal(found["h.1.w"], 2 * W / 3)


def test_a_slice_of_the_first_tensor_is_replaced_alone(tmp_path: Path) -> None:
    step = {"compute": {"from": {"w": "w::[1:3]", "r": "r::[:2]"}, "expr": "w + r[:, None]"}}
    wanted = W.copy()
    wanted[1:3] += R[:2, None]
    np.testing.assert_array_equal(run_plan(tmp_path, {"w": W, "r": R}, step)["w"], wanted)


def test_to_may_replace_a_tensor_by_one_of_another_shape(tmp_path: Path) -> None:
    assert run_plan(tmp_path, {"w": W}, formula("w[:2]", to="w"))["w"].shape == (2, 6)


def test_a_match_without_the_others_is_left_out_where_the_plan_says_so(tmp_path: Path) -> None:
    tensors = {"0.w": W, "1.w": W, "1.d": W}
    step = {"compute": {"from": {"w": r"(.)\.w", "d": r"\1.d"}, "expr": "w - d"}}
    (error,) = problems(tmp_path, tensors, step)
    assert error.code == "tensor-missing"
    found = run_plan(tmp_path, tensors, {"compute": step["compute"] | {"if_missing": "skip"}})
    assert (found["0.w"].any(), found["1.w"].any()) == (True, False)


def test_two_results_cannot_have_one_name(tmp_path: Path) -> None:
    step = {"compute": {"from": {"x": "[ab]"}, "to": "c", "expr": "x + 1"}}
    (error,) = problems(tmp_path, {"a": W, "b": W}, step)
    assert error.code == "names-collide"


@pytest.mark.parametrize("dtype", [BF16, np.float16, ml_dtypes.float8_e4m3fn])
def test_small_floats_are_computed_in_float32_and_rounded_once(dtype: Any, tmp_path: Path) -> None:
    x, y = normal((300,)).astype(dtype), normal((300,), seed=1).astype(dtype)
    wide = (x.astype(np.float32) * np.float32(3) - y.astype(np.float32)) / np.float32(3)
    np.testing.assert_array_equal(value(tmp_path, "(x * 3 - y) / 3", x=x, y=y), wide.astype(dtype))


def test_a_result_takes_the_dtype_of_what_it_replaces(tmp_path: Path) -> None:
    tensors = {"w.a": normal((2, 3)), "w.b": normal((4, 2)), "w.weight": np.zeros((4, 3), BF16)}
    step = {"compute": {"from": {"a": r"(.*)\.a", "b": r"\1.b"}, "to": r"\1.weight", "expr": "b @ a"}}
    found = run_plan(tmp_path, tensors, step)["w.weight"]
    assert found.dtype == BF16
    np.testing.assert_array_equal(found, (tensors["w.b"] @ tensors["w.a"]).astype(BF16))


def test_dtype_says_what_to_round_to(tmp_path: Path) -> None:
    tensors = {"i": np.arange(-3, 4, dtype=np.int32)}
    assert (
        run_plan(tmp_path, tensors, formula("i / 2", dtype="float64"))["out"].tolist()
        == (np.arange(-3, 4) / 2).tolist()
    )
    assert run_plan(tmp_path, tensors, formula("i / 2", dtype="int8"))["out"].tolist() == [-1, -1, 0, 0, 0, 1, 1]
    assert run_plan(tmp_path, tensors, formula("i > 0", dtype="bool"))["out"].tolist() == [False] * 4 + [True] * 3


def test_floats_of_several_widths_are_computed_in_the_widest(tmp_path: Path) -> None:
    x, y = normal((5,)).astype(BF16), normal((5,), np.float64)
    found = value(tmp_path, "y + x", x=x, y=y)  # `x` is the first, so its dtype is kept
    np.testing.assert_array_equal(found, (x.astype(np.float64) + y).astype(np.float32).astype(BF16))


# --- Messages ---------------------------------------------------------------------------------------------------------


def test_a_caret_shows_the_part_that_does_not_fit(tmp_path: Path) -> None:
    assert hint(tmp_path, "w - outer(r, r @ w.T)", w=W, r=R) == "w - outer(r, r @ w.T)\n             ^^^^^^^"


def test_of_a_long_expression_the_part_around_the_mistake_is_shown(tmp_path: Path) -> None:
    first, carets = hint(tmp_path, "w + " * 20 + "w @ w" + " + w" * 20, w=W).splitlines()
    assert len(first) <= 80
    assert first[carets.index("^") : len(carets)] == "w @ w"


@pytest.mark.parametrize(
    ("expr", "advice"),
    [
        ("w ^ 2", "Powers are written `x ** 2`."),
        ("w > 0 and w < 1", "Write `&` for and, `|` for or"),
        ("not w", "Write `~` for not."),
        ("0 < w < 1", "Compare two at a time: `(a < b) & (b < c)`."),
        ("1 if w else 2", "Write `where(condition, this, that)`."),
        ("w.sum(axis=0)", "Write `sum(x, axis=None, keepdims=False)`."),
        ("min(w, 0)", "or, of two, `minimum(x, y)`."),
        ("w[[0, 1]]", "An expression has names, numbers"),
        ("sum(*w)", "Write `sum(x, axis=None, keepdims=False)`."),
        ("sum(w, axis=0, axis=1)", "Write `sum(x, axis=None, keepdims=False)`."),
    ],
)
def test_what_is_written_otherwise_elsewhere_is_corrected(expr: str, advice: str, tmp_path: Path) -> None:
    assert advice in hint(tmp_path, expr, w=W)


@pytest.mark.parametrize("name", ["x.y", "if", "sum", "to", "1st", ""])
def test_a_name_that_no_expression_can_use_is_refused(name: str, tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"w": W}, {"compute": {"from": {name: "w"}, "expr": "w"}})
    assert (error.code, error.span and error.span.in_mapping) == ("expression-name", True)


@pytest.mark.parametrize("expr", ["-" * 900 + "w", "(" * 400 + "w" + ")" * 400, "w" + " + w" * 100, "w" * 5000])
def test_expressions_of_any_size_are_read_in_bounds(expr: str, tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"w": W}, {"compute": {"from": {"w": "w"}, "expr": expr}})
    assert error.code == "expression-syntax"


@pytest.mark.parametrize(
    "expr", ["w + 9 ** 9 ** 9", "w ** 1000", "w * 10 ** 30", "w + 1 / 0", "w + (-8) ** 0.5", "w * 1e300 * 1e300 ** 2"]
)
def test_numbers_of_any_size_are_computed_in_bounds(expr: str, tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"w": W}, {"compute": {"from": {"w": "w"}, "expr": expr}})
    assert error.code == "expression-value"


# --- Running ----------------------------------------------------------------------------------------------------------


def made(folder: Path, tensors: dict[str, np.ndarray], expr: str) -> Any:
    """The node of the graph that a step makes."""
    (out,) = bs.load(plan_of(folder, tensors, formula(expr))).explain().program.publications
    return out.tensors["out"]


@pytest.mark.parametrize(
    ("expr", "whole"),
    [
        ("where(abs(x) > 1, x * y, 0) / 2", False),
        ("x + s", False),
        ("x + h", False),
        ("x - mean(x)", True),
        ("x @ y.T", True),
    ],
)
def test_what_works_element_by_element_is_computed_in_blocks(expr: str, whole: bool, tmp_path: Path) -> None:
    x = normal((4, 6))
    tensors = {"x": x, "y": x, "s": np.ones((), np.float32), "h": x.astype(np.float16)}
    assert is_whole(made(tmp_path, tensors, expr)) is whole


@pytest.mark.parametrize("expr", ["x * s + y", "(x + h) * row", "where(x > y, x, s)", "x + column * h"])
def test_blocks_give_the_bits_of_the_whole(expr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "x": counting((40, 30)), "y": counting((40, 30)) * 2, "h": counting((40, 30)).astype(np.float16),
        "row": counting((30,)), "column": counting((40, 1)), "s": np.full((), 3, np.float32),
    }  # fmt: skip
    whole = value(tmp_path, expr, **tensors)
    set_block(monkeypatch, 256, 64)
    assert blocks.BLOCK == 256
    np.testing.assert_array_equal(value(tmp_path, expr, **tensors), whole)


def test_all_layers_of_one_shape_are_compiled_once(tmp_path: Path) -> None:
    tensors = {f"h.{i}.w": W + i for i in range(5)} | {"r": R}
    step = {"compute": {"from": {"w": r"h\..*", "r": "r"}, "expr": "w - outer(r, r @ w) * 1.25"}}
    plan = bs.load(plan_of(tmp_path, tensors, step))
    (out,) = plan.explain().program.publications
    assert len({(e.kernel, e.static, e.srcs[0].aval) for e in out.tensors.values() if e.kernel}) == 1


def test_a_plan_with_an_expression_runs_under_jit() -> None:
    plan = bs.load({"transforms": [{"compute": {"from": {"w": "w", "r": "r"}, "expr": "w - outer(r, r @ w)"}}]})
    w, r = W.astype(np.float32), R.astype(np.float32)
    found = jax.jit(plan.apply)({"w": w, "r": r})["w"]
    np.testing.assert_allclose(found, w - np.outer(r, r @ w), rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_an_expression() -> None:
    plan = bs.load({"transforms": [{"compute": {"from": {"w": "w", "r": "r"}, "expr": "w * r[:, None] ** 2"}}]})
    w, r = W.astype(np.float32), R.astype(np.float32)
    found = jax.grad(lambda w: jnp.sum(plan.apply({"w": w, "r": r})["w"]))(jnp.asarray(w))
    np.testing.assert_allclose(found, np.broadcast_to(r[:, None] ** 2, w.shape), rtol=1e-6)


# --- Names that the expression does not use ---------------------------------------------------------------------------


@pytest.mark.parametrize(("expr", "expected"), [("2 * w", 2 * W), ("w @ w.T", W @ W.T)])
def test_a_name_that_the_expression_does_not_use_is_noted_and_nothing_of_it_is_read(
    tmp_path: Path, expr: str, expected: np.ndarray
):
    step = {"compute": {"from": {"w": "w", "unused": "v"}, "to": "out", "expr": expr}}
    plan = bs.load(plan_of(tmp_path, {"w": W, "v": normal((9, 9))}, [step, {"delete": {"target": "[vw]"}}]))
    with closing(Files()) as world:
        report = plan.run(durable=False, world=world)
        assert world.bytes_read == W.nbytes
    assert [(n.code, n.severity) for n in report.notes] == [("operand-unused", "note")]
    np.testing.assert_allclose(read(report.published[0][0])["out"], expected, rtol=1e-12)


def test_a_tensor_that_is_replaced_needs_no_use_in_the_expression(tmp_path: Path):
    step = {"compute": {"from": {"w": "w", "v": "v"}, "expr": "2 * v"}}
    plan = bs.load(plan_of(tmp_path, {"w": W, "v": W + 1}, [step]))
    report = plan.run(durable=False)
    assert report.notes == ()
    np.testing.assert_allclose(read(report.published[0][0])["w"], 2 * (W + 1), rtol=1e-12)


def test_an_expression_of_no_name_is_a_constant(tmp_path: Path):
    step = {"compute": {"from": {"w": "w"}, "to": "out", "expr": "3 * eye(2)"}}
    assert run_plan(tmp_path, {"w": W}, step)["out"].tolist() == [[3, 0], [0, 3]]


def test_a_name_that_is_not_used_must_be_there(tmp_path: Path):
    step = {"compute": {"from": {"w": "w", "v": "nowhere"}, "expr": "2 * w"}}
    assert [p.code for p in problems(tmp_path, {"w": W}, step) if p.severity == "error"] == ["tensor-missing"]


def test_averages_under_names_without_dots_are_taken_in_one_step(tmp_path: Path):
    live = {f"model.{name}": normal((2, 3), seed=at) for at, name in enumerate(("in.0.weight", "out.bias", "a.b.c.d"))}
    ema = {f"model_ema.{n[6:].replace('.', '')}": 2 * x for n, x in live.items()}
    step = {"lerp": {"from_a": r"model\.(.*)", "from_b": r'model_ema.${replace(\1, ".", "")}', "to": r"\g<0>", "t": 1}}
    made = run_plan(tmp_path, live | ema, [step, {"delete": {"target": r"model_ema\..*"}}])
    assert {n: x.tolist() for n, x in made.items()} == {n: (2 * x).tolist() for n, x in live.items()}


# --- Shares of the elements, and axes that are kept -------------------------------------------------------------------


@pytest.mark.parametrize("share", ["0", "1"])
def test_a_share_may_be_a_whole_number(tmp_path: Path, share: str) -> None:
    assert value(tmp_path, f"quantile(w, {share})", w=W) == np.quantile(W, int(share))


@pytest.mark.parametrize("share", ["-0.1", "1.5", "True", "2"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str) -> None:
    (error,) = problems(tmp_path, {"w": W}, formula(f"quantile(w, {share})"))
    assert f"a share of the elements is a number from 0 to 1, got {share}" in error.message


def test_a_share_is_no_matrix(tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"w": W}, formula("quantile(w, w)"))
    assert "a share of the elements is a number from 0 to 1, or a vector of them" in error.message


@pytest.mark.parametrize(("q", "share"), [(-0.5, 0), (1.5, 1), (0.25, 0.25), (np.nan, np.nan)])
def test_a_share_in_a_tensor_is_cut_off_at_0_and_1(tmp_path: Path, q: float, share: float) -> None:
    expected = np.nan if np.isnan(share) else np.quantile(W, share)
    np.testing.assert_array_equal(value(tmp_path, "quantile(w, q)", w=W, q=np.array(q)), expected)


@pytest.mark.parametrize("expr", ["{} + w", "w / {}", "minimum(w, {})"])
@pytest.mark.parametrize("reduced", ["mean(w, axis=1)", "quantile(abs(w), 0.5, axis=-1)", "norm(w * 2, axis=(1,))"])
def test_axes_that_a_reduction_lost_are_kept_as_the_hint_says(tmp_path: Path, expr: str, reduced: str) -> None:
    told = hint(tmp_path, expr.format(reduced), w=W)
    (kept,) = re.findall("Keep the axes that it goes over: `(.*)`", told)
    assert kept == f"{reduced[:-1]}, keepdims=True)"
    assert value(tmp_path, expr.format(kept), w=W).shape == W.shape


def test_axes_that_would_not_help_are_not_proposed(tmp_path: Path) -> None:
    assert "keepdims" not in hint(tmp_path, "w[:, :4] - mean(w.T, axis=1)", w=W)


# --- Linear algebra ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "match"),
    [
        ("solve(w, r)", "a matrix of `solve` is singular or not finite"),
        ("inv(w)", "a matrix of `inv` is singular or not finite"),
        ("cholesky(-eye(4)) * r[0] + w", "a matrix of `cholesky` is not positive definite"),
        ("svd(w / w)[1]", "a matrix of `svd` holds NaN or infinity"),
    ],
)
def test_a_matrix_that_has_no_answer_stops_the_run(expr: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=match):
        value(tmp_path, expr, w=np.zeros((4, 4)), r=R)


@pytest.mark.parametrize(
    ("expr", "match"),
    [
        ("solve(w, r)", "takes square matrices, batched over leading axes"),
        ("solve(w @ w.T, w.T)", "the right side needs 4 rows, as the matrix has"),
        ("inv(eye(20000))", "inv takes square matrices of at most 16,384 rows"),
        ("svd(zeros(9000, 9000))[1]", "svd takes matrices of at most 8,192 rows or columns"),
        ("svd(w) + 1", "there are 3 results; pick one, such as the first by"),
        ("svd(w)[3]", "takes a whole number below 3 in brackets"),
        ("topk(w, 7)", "takes a whole number from 1 to 6, the size of axis -1, as count"),
        ("einsum('ij,jk->ik', w, w)", "'j' is 6 and 4; axes with one letter have one size"),
        ("einsum('ij', w)", "the equation stands in quotes"),
        ("linspace(0, 1, 0.5)", "takes a whole number as count"),
    ],
)
def test_what_a_function_does_not_take_is_said_from_shapes(expr: str, match: str, tmp_path: Path) -> None:
    (error,) = [p for p in problems(tmp_path, {"w": W, "r": R}, formula(expr, **{"from": {"w": "w", "r": "r"}}))
                if p.severity == "error"]  # fmt: skip
    assert match in error.message


@pytest.mark.parametrize("expr", ["solve(a, b)", "inv(a) @ b", "svd(a)[2] @ b", "qr(a)[1] @ b", "det(a)"])
def test_leading_axes_are_a_batch(expr: str, tmp_path: Path) -> None:
    a, b = normal((3, 4, 4), np.float64), normal((3, 4, 2), np.float64, seed=1)
    names = {n: x for n, x in (("a", a), ("b", b)) if re.search(rf"\b{n}\b", expr)}
    for name in ("0", "1", "2", "all"):
        (tmp_path / name).mkdir()
    each = [value(tmp_path / str(at), expr, **{n: x[at] for n, x in names.items()}) for at in range(3)]
    np.testing.assert_allclose(value(tmp_path / "all", expr, **names), np.stack(each), rtol=1e-10, atol=1e-12)


def test_small_floats_are_solved_with_in_double_precision(tmp_path: Path) -> None:
    """In float32 the Hilbert matrix of order 6 leaves one digit."""
    a = (1 / (1 + np.arange(6)[:, None] + np.arange(6))).astype(np.float32)
    b = a.astype(np.float64) @ np.ones(6)
    found = value(tmp_path, "solve(a, b)", a=a, b=b.astype(np.float32))
    exact = np.linalg.solve(a.astype(np.float64), b.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(found, exact.astype(np.float32))
