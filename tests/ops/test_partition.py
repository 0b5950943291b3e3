"""How an expression is computed in parts: a function of its text and of shapes and dtypes, tried without an array; and
that parts give what the whole gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import brainsurgery_jax.expression.partition as partitioning
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.evaluate import evaluate
from brainsurgery_jax.expression.functions import FUNCTIONS
from brainsurgery_jax.expression.liveness import peak
from brainsurgery_jax.expression.parse import parse_expression
from brainsurgery_jax.expression.partition import Partition, part_bytes, partition
from brainsurgery_jax.expression.program import Computation
from brainsurgery_jax.expression.typing import type_expression
from brainsurgery_jax.ops import compute
from tests.checkpoints import np_dtype, same

MB = 1 << 20


def program(expr: str, **avals: str) -> Computation:
    """The program of an expression on tensors such as `x="f32[4,6]"`."""
    found = [aval(text) for text in avals.values()]
    return type_expression(parse_expression(expr), tuple(avals), tuple(found)).program


def aval(text: str) -> Aval:
    dtype, _, shape = text.rstrip("]").partition("[")
    return Aval(tuple(map(int, shape.split(","))) if shape else (), BY_NAME[dtype])


def cut(expr: str, **avals: str) -> Partition:
    found = partition(program(expr, **avals))
    assert found is not None, expr
    return found


# --- Which axis -------------------------------------------------------------------------------------------------------

LARGE = "f32[8192,4096]"


@pytest.mark.parametrize(
    ("expr", "avals", "axes"),
    [
        ("x * s[:, None]", {"x": LARGE, "s": "f32[8192]"}, [(0, (0, 0))]),
        ("x * s[None, :]", {"x": LARGE, "s": "f32[4096]"}, [(0, (0, None))]),
        ("x / norm(x, axis=1, keepdims=True)", {"x": LARGE}, [(0, (0,))]),
        ("softmax(x, axis=1)", {"x": LARGE}, [(0, (0,))]),
        ("x @ q", {"x": LARGE, "q": "f32[4096,4]"}, [(0, (0, None))]),
        ("reshape(x, (64, 128, 4096)) * s[:, None, None]", {"x": LARGE, "s": "f32[64]"}, [(0, (0, 0))]),
        ("stack(x, -x, axis=-1)", {"x": LARGE}, [(0, (0,))]),
        ("concat(x, y, axis=1)", {"x": LARGE, "y": "f32[8192,8]"}, [(0, (0, 0))]),
        ("repeat(s, 128, axis=0)[:, None] * x", {"s": "f32[64]", "x": LARGE}, [(0, (0, 0))]),
        ("x[:, ::2] + x[:, 1::2]", {"x": LARGE}, [(0, (0,))]),
        ("take(t, i)", {"t": "f32[16]", "i": "u8[8192,4096]"}, [(0, (None, 0))]),
        ("transpose(x, (0, 2, 1))", {"x": "f32[64,1024,512]"}, [(0, (0,))]),
        ("x * 2 + s", {"x": "f32[2,30000,900]", "s": "f32[900]"}, [(0, (0, None)), (1, (1, None))]),
    ],
)
def test_parts_are_cut_along_axes_that_nothing_mixes(
    expr: str, avals: dict[str, str], axes: list[tuple[int, tuple[int | None, ...]]]
) -> None:
    found = cut(expr, **avals)
    assert found.kept == ()
    assert found.sources == tuple(range(len(avals)))
    assert [(c.axis, c.operands) for c in found.cuts] == axes


def test_units_are_what_every_operand_can_be_cut_into() -> None:
    blocks = cut(
        "reshape(reshape(w, (56, 128, 144, 128)) * s[:, None, :, None], (7168, 18432))",
        w="f8_e4m3fn[7168,18432]",
        s="f32[56,144]",
    )
    assert [(c.units, c.step, c.operands) for c in blocks.cuts] == [(56, 1, (0, 0))]


@pytest.mark.parametrize(
    ("expr", "kept"),
    [
        ("x - mean(x)", ["f32[]"]),
        ("x / norm(x, axis=0, keepdims=True)", ["f32[1,4096]"]),
        ("x - outer(r, r @ x)", ["f32[4096]"]),
        ("where(abs(x) > quantile(abs(x), 0.5), x, 0)", ["f32[]"]),
        ("flip(x, axis=0) + x", ["f32[8192,4096]"]),
        ("transpose(q) @ x", ["f32[8192,8192]", "f32[8192,4096]"]),
        ("x * eye(8192, 4096)", ["f32[8192,4096]"]),
    ],
)
def test_what_every_part_needs_is_kept(expr: str, kept: list[str]) -> None:
    named = {"x": LARGE, "r": "f32[8192]", "q": "f32[8192,8192]"}
    found = cut(expr, **{name: named[name] for name in sorted(parse_expression(expr).names)})
    assert [str(k.aval) for k in found.kept] == kept


@pytest.mark.parametrize("expr", ["sum(x)", "x[0, 0] + 1", "x[:4]", "diag(x[0])[:5]"])
def test_what_is_small_or_has_no_axis_to_cut_is_whole(expr: str) -> None:
    assert partition(program(expr, x="f32[100,100]")) is None


def test_small_parts_of_a_program_are_made_again_rather_than_kept() -> None:
    found = cut("x * take(arange(16) * 2, i)", x=LARGE, i="u8[8192,4096]")
    assert found.kept == ()


# --- How large --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1_000, 8_192, 100_003])
def test_a_part_takes_no_more_than_it_may_however_large_the_tensor(rows: int) -> None:
    found = cut("x * 2 + tanh(x) * s", x=f"f32[{rows},4096]", s="f32[4096]")
    assert partitioning.PART // 2 < part_bytes(found.program, found.cuts) <= partitioning.PART


def test_parts_follow_from_shapes_and_dtypes_alone() -> None:
    one, other = (cut("x * 2 + tanh(x)", x=LARGE).cuts for _ in range(2))
    assert one == other
    assert one != cut("x * 2 + tanh(x)", x=LARGE.replace("f32", "f64")).cuts


def test_the_worst_moment_counts_what_is_held_at_a_time() -> None:
    """`x * 2` (4 MB) and `tanh(x)` (4 MB) are there when the sum, the result, is made."""
    x = "f32[1024,1024]"
    assert peak(program("x * 2", x=x)) == 0
    assert peak(program("x * 2 + tanh(x)", x=x)) == 8 * MB
    assert peak(program("-(-(-(-x)))", x=x)) == 4 * MB
    assert peak(program("x * 2", x=x.replace("f32", "bf16"))) == 4 * MB  # the operand, widened
    assert peak(program("sum(x * 2)", x=x)) == 4 * MB
    assert peak(program("x.T", x=x)) == 0
    assert peak(program("reshape(x.T, (-1,)) + 1", x=x)) == 4 * MB  # put in order


# --- The same values --------------------------------------------------------------------------------------------------

SHAPES = {"w": (4, 6), "v": (6,), "u": (4, 1), "s": (), "t": (2, 4, 6)}
DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn")
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "@", "<", "==", "&", "|", "<<", ">>")
ENDINGS = (".T", "[0]", "[-1]", "[:, ::2]", "[None]", "[..., 0]", "[::-1]", "[1:3]")
TAILS = ("", ", axis=0", ", axis=-1", ", axis=(0, 1)", ", axis=1, keepdims=True")


def grown(terms: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    names = st.sampled_from([n for n in FUNCTIONS if n not in ("where", "clip")])
    several = st.lists(terms, min_size=1, max_size=2).map(", ".join)
    return st.one_of(
        st.builds("({} {} {})".format, terms, st.sampled_from(OPERATORS), terms),
        st.builds("{}{}".format, terms, st.sampled_from(ENDINGS)),
        st.builds("{}({}{})".format, names, several, st.sampled_from(TAILS)),
        st.builds("where({} > 0, {}, {})".format, terms, terms, terms),
        st.builds("reshape({}, {})".format, terms, st.sampled_from(["-1", "(2, -1)", "(4, 6)", "(2, 2, 6)"])),
    )


EXPRESSIONS = st.recursive(st.sampled_from([*SHAPES, "1", "0.5", "2", "w.shape[0]"]), grown, max_leaves=7)


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = 0 if dtype in ("bool", "uint8") else -3
    return np.asarray(rng.integers(low, 9, shape) + rng.random(shape).round(2)).astype(np_dtype(BY_NAME[dtype]))


def assert_parts_give_the_whole(expr: str, dtypes: dict[str, str]) -> bool:
    """Whether an expression is accepted; then it has the shape and dtype inferred, in parts as a whole."""
    names = tuple(sorted(parse_expression(expr).names))
    avals = tuple(Aval(SHAPES[n], BY_NAME[dtypes[n]]) for n in names)
    try:
        made = type_expression(parse_expression(expr), names, avals).program
    except Refusal:
        return False
    xs: list[Any] = [values(a.shape, a.dtype.name, seed) for seed, a in enumerate(avals)]
    with np.errstate(all="ignore"):
        value, accepted = evaluate(made, xs)
        assert (value.shape, value.dtype) == (made.aval.shape, np_dtype(made.aval.dtype))
        again, also = compute.whole(*xs, program=made)
    assert bool(accepted) == bool(also)
    exact = made.aval.dtype.kind not in ("float", "complex") or "@" not in expr
    close = np.allclose(again, value, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert not accepted or (same(again, value) if exact and "matmul" not in expr and "dot" not in expr else close)
    return True


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts of a few elements."""
    for name, value in {"PART": 200, "PRODUCTS": 200, "CHEAP": 4, "AGAIN": 16, "RUN": 4}.items():
        monkeypatch.setattr(partitioning, name, value)
    partition.cache_clear()
    yield
    partition.cache_clear()


@pytest.mark.usefixtures("tiny")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(EXPRESSIONS, st.fixed_dictionaries({n: st.sampled_from(DTYPES) for n in SHAPES}))
def test_parts_give_what_the_whole_gives(expr: str, dtypes: dict[str, str]) -> None:
    try:
        names = parse_expression(expr).names
    except Refusal:
        names = frozenset()
    assume(names and assert_parts_give_the_whole(expr, dtypes))
