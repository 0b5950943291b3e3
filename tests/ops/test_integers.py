"""Integers in expressions: what can wrap is said before it does, what has no value stops the run, packed weights come
out as a script unpacks them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.expression.parse import parse_expression
from brainsurgery_jax.expression.ranges import exact_ranges
from brainsurgery_jax.expression.typing import type_expression
from brainsurgery_jax.ops import compute
from tests.checkpoints import normal, np_dtype, plan_of, problems, run_plan, set_block

RNG = np.random.default_rng(0)
U8 = np.arange(256, dtype=np.uint8)


def formula(expr: str, **keys: Any) -> dict[str, Any]:
    named = sorted(parse_expression(expr).names)
    return {"compute": {"from": {name: name for name in named}, "expr": expr, "to": "out"} | keys}


def notes(folder: Path, expr: str, **tensors: np.ndarray) -> list[Diagnostic]:
    """The notes of a step that is right."""
    found = problems(folder, tensors, formula(expr, dtype="float64"))
    assert all(d.severity == "note" for d in found)
    return [d for d in found if d.code == "integer-wraps"]


# --- Notes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "dtype", "what"),
    [
        ("(q & 15) - 8", "uint8", r"'\(q & 15\) - 8' is computed in uint8 and wraps: its values go from -8 to 7"),
        ("q + q", "uint8", r"from 0 to 510"),
        ("q * 3", "int8", r"from -384 to 381"),
        ("q << 4", "uint8", r"from 0 to 4,080"),
        ("-q", "uint8", r"from -255 to 0"),
        ("-q", "int8", r"from -127 to 128"),
        ("q * q", "int16", r"'q \* q' is computed in int16 and wraps"),
        ("q @ q.T", "int8", r"'q @ q.T' is computed in int8 and wraps: its values go from -65,024 to 65,536"),
        ("dot(q, q)", "uint8", r"from 0 to 260,100"),
        ("einsum('ij,jk->ik', q, q)", "int8", r"from -65,024 to 65,536"),
        ("einsum('ij,kj->', q, q)", "int8", r"from -1,040,384 to 1,048,576"),
        ("einsum('ij->i', q)", "uint8", r"from 0 to 1,020"),
    ],
)
def test_arithmetic_that_can_wrap_is_noted(expr: str, dtype: str, what: str, tmp_path: Path) -> None:
    (note,) = notes(tmp_path, expr, q=np.ones((4, 4), np_dtype(BY_NAME[dtype])))
    assert re.search(what, note.message)


@pytest.mark.parametrize(
    ("expr", "dtype"),
    [
        ("(q & 15) + 240", "uint8"),
        ("(q >> 4) * 17", "uint8"),
        ("q % 16 << 4", "uint8"),
        ("(q & 15) - 8", "int8"),
        ("int32(q & 15) - 8", "uint8"),
        ("where(q > 8, 1, 0) * 255", "uint8"),
        ("minimum(q, 100) + 100", "uint8"),
        ("q // 2 + q // 2", "uint8"),
        ("q + q", "int32"),
        ("q * 1.5 - 8", "uint8"),
        ("~q", "uint8"),
        ("sum(q)", "uint8"),
    ],
)
def test_arithmetic_that_always_fits_is_not(expr: str, dtype: str, tmp_path: Path) -> None:
    assert notes(tmp_path, expr, q=np.ones((4, 4), np_dtype(BY_NAME[dtype]))) == []


@pytest.mark.parametrize("expr", ["(q & 15) - 8", "q + q", "q << 4", "-q"])
def test_the_remedy_of_the_note_mends_the_plan(expr: str, tmp_path: Path) -> None:
    (note,) = notes(tmp_path, expr, q=U8)
    new, old = note.hint.split("`")[1], note.hint.split("`")[3]
    mended = expr.replace(old, new, 1) if old != "q" else expr.replace("q", new)
    found = run_plan(tmp_path, {"q": U8}, formula(mended, dtype="int32"))["out"]
    assert notes(tmp_path, mended, q=U8) == []
    assert found.tolist() == eval(expr, {}, {"q": U8.astype(np.int32)}).tolist()


def test_without_the_remedy_integers_wrap_as_numpys_do(tmp_path: Path) -> None:
    found = run_plan(tmp_path, {"q": U8}, formula("(q & 15) - 8"))["out"]
    assert (found.dtype, found.tolist()) == (np.uint8, ((U8 & 15) - np.uint8(8)).tolist())


# --- As numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "bool"])
def test_running_sums_have_64_bits(dtype: str, axis: int | None, tmp_path: Path) -> None:
    most = 1 if dtype == "bool" else np.iinfo(dtype).max
    q = np.full((3, 5), most, dtype)
    found = run_plan(tmp_path, {"q": q}, formula(f"cumsum(q, axis={axis})", dtype="int64"))["out"]
    np.testing.assert_array_equal(found, np.cumsum(q, axis=axis))


def test_running_sums_that_do_not_fit_their_dtype_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a value does not fit int8"):
        run_plan(tmp_path, {"q": np.full(2, 100, np.int8)}, formula("cumsum(q)"))


def test_under_jit_running_sums_have_64_bits() -> None:
    plan = bs.load({"transforms": [formula("cumsum(q)", dtype="float32")]})
    found = jax.jit(plan.apply)({"q": np.full(5, 100, np.int8)})["out"]
    assert found.tolist() == [100, 200, 300, 400, 500]


LONG = {dtype: np.array([2**24 + 1, 5, np.iinfo(dtype).max], dtype) for dtype in ("int32", "uint32", "int64", "uint64")}
SINGLE = np.array([0.1, 3, 7], np.float32)
AS_NUMPY = (
    "k / 3", "3 / k", "k / k[::-1]", "np.median(k)", "np.quantile(k, 0.5)", "np.mean(k)", "np.std(k)", "np.var(k)",
    "np.sqrt(k)", "np.log(k)", "k + f", "f * k", "k - f", "k > f + 16777216", "np.maximum(k, f)",
    "np.where(f > 1, k, f)", "np.where(k > 5, f, f)", "np.dot(k, f)", "np.outer(k, f)", "k // f", "np.clip(f, 0, k)",
)  # fmt: skip


@pytest.mark.parametrize("expr", AS_NUMPY)
@pytest.mark.parametrize("dtype", LONG)
def test_integers_of_32_bits_and_more_are_computed_in_double_precision(dtype: str, expr: str, tmp_path: Path) -> None:
    with np.errstate(all="ignore"):
        wanted = np.asarray(eval(expr, {"np": np, "k": LONG[dtype], "f": SINGLE}))
    found = run_plan(tmp_path, {"k": LONG[dtype], "f": SINGLE}, formula(expr.replace("np.", ""), dtype="float64"))[
        "out"
    ]
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=1e-15)


@pytest.mark.parametrize("expr", AS_NUMPY[:8])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_quotients_and_statistics_of_small_integers_are_those_of_numpy(dtype: str, expr: str, tmp_path: Path) -> None:
    k = np.array([3, 5, np.iinfo(dtype).max], dtype)
    found = run_plan(tmp_path, {"k": k}, formula(expr.replace("np.", ""), dtype="float64"))["out"]
    np.testing.assert_allclose(found, eval(expr, {"np": np, "k": k}), rtol=1e-15)


@pytest.mark.parametrize("expr", ["k + f", "k * f", "np.sqrt(k)"])
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_small_integers_beside_floats_are_computed_in_float32_as_in_numpy(
    dtype: str, expr: str, tmp_path: Path
) -> None:
    k = np.array([3, 5, np.iinfo(dtype).max], dtype)
    wanted = eval(expr, {"np": np, "k": k, "f": SINGLE})
    found = run_plan(tmp_path, {"k": k, "f": SINGLE}, formula(expr.replace("np.", ""), dtype="float64"))["out"]
    assert wanted.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_a_median_of_integers_is_one_of_them_whatever_it_is_stored_as(tmp_path: Path) -> None:
    found = run_plan(tmp_path, {"k": LONG["int32"]}, formula("median(k)", dtype="int64"))["out"]
    assert int(found) == 2**24 + 1


@pytest.mark.parametrize("expr", ["median(k)", "quantile(k, 0.5)", "mean(k / 3)", "sum(sqrt(k))", "k / 3"])
def test_blocks_of_integers_are_computed_in_double_precision(expr: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(compute, "STREAMED", 0)
    set_block(monkeypatch, 16, 8)
    k = np.arange(2**30, 2**30 + 999, dtype=np.int32)
    found = run_plan(tmp_path, {"k": k}, formula(expr, dtype="float64"))["out"]
    wanted = eval(expr, {"k": k, **{n: getattr(np, n) for n in ("median", "quantile", "mean", "sum", "sqrt")}})
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


@pytest.mark.parametrize("expr", ["median(k) - 16777216", "k / 3 - 5592405", "sqrt(k) - 4096", "mean(k) - 721420289"])
def test_under_jit_integers_are_computed_in_double_precision(expr: str) -> None:
    k = LONG["int32"]
    plan = bs.load({"transforms": [formula(expr, dtype="float32")]})
    found = jax.jit(plan.apply)({"k": k})["out"]
    wanted = np.asarray(eval(expr, {"k": k, "median": np.median, "sqrt": np.sqrt, "mean": np.mean}))
    np.testing.assert_allclose(found, wanted.astype(np.float32), rtol=1e-6)


BINARY = ("+", "-", "*", "//", "%", "&", "|", "<<", ">>", "**")


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8"), ("bool", "int8")])
def test_every_value_lies_in_the_range_that_is_known_of_it(op: str, dtypes: tuple[str, str]) -> None:
    """The range without wrapping, held against Python's integers of any size."""
    expr = f"(x {op} y)" if op not in ("<<", ">>", "**") else f"(x {op} (y & 3))"
    avals = tuple(Aval((1,), BY_NAME[d]) for d in dtypes)
    program = type_expression(parse_expression(expr), ("x", "y"), avals).program
    own = exact_ranges(program)[-1]
    assert own is not None
    ends = {"int8": range(-128, 128, 3), "uint8": range(0, 256, 3), "bool": range(2)}
    for x in (*ends[dtypes[0]], -1 if dtypes[0] == "int8" else 1):
        for y in (*ends[dtypes[1]], 1):
            if y or op not in ("//", "%"):
                assert own.low <= eval(expr) <= own.high, (x, y)


# --- Values that stop a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "q", "why"),
    [
        ("7 // q", [1, 0], "an integer is divided by zero(?s:.*)Write `float32"),
        ("7 % q", [1, 0], "an integer is divided by zero"),
        ("2 ** q", [1, -1], "an integer has a negative exponent"),
        ("uint8(q)", [1, 256], "a value does not fit uint8, or is NaN"),
        ("take(t, q)", [0, 5], "an index is out of range for the 5 entries of what `take` picks from"),
        ("take(t, q)", [0, -6], "an index is out of range"),
    ],
)
def test_a_value_without_a_result_stops_the_run(expr: str, q: list[int], why: str, tmp_path: Path) -> None:
    tensors = {"q": np.array(q, np.int32)} | ({"t": normal((5,))} if "t," in expr else {})
    plan = plan_of(tmp_path, tensors, formula(expr, dtype="float64" if "t," in expr else "int32"))
    with pytest.raises(PlanError, match=why) as caught:
        bs.load(plan).run(durable=False)
    assert caught.value.diagnostics[0].code == "refused-by-values"


def test_what_cannot_happen_asks_for_no_checks_under_jit() -> None:
    plan = bs.load({"transforms": [formula("take(t, q & 15) * float32(q // 16 % 16)", dtype="float32")]})
    tree = {"q": U8, "t": np.arange(16, dtype=np.float32)}
    found = jax.jit(plan.apply)(tree)["out"]
    assert found.tolist() == ((U8 & 15) * (U8 >> 4).astype(np.float32)).tolist()


def test_places_of_a_table_may_count_from_its_end(tmp_path: Path) -> None:
    t = normal((5,))
    found = run_plan(tmp_path, {"t": t, "q": np.array([-1, 0, -5])}, formula("take(t, q)", dtype="float32"))["out"]
    assert found.tolist() == t[[-1, 0, -5]].tolist()


def test_a_number_that_integers_cannot_be_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, {"q": U8}, formula("minimum(q, -1)"))
    assert [d.code for d in found] == ["expression-value"]
    assert "-1 does not fit uint8 (0 to 255)" in found[0].message


# --- Packed weights ---------------------------------------------------------------------------------------------------

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NF4 = np.linspace(-1, 1, 16).astype(np.float32)

MXFP4 = (
    "reshape(stack(take(t, b & 15), take(t, b >> 4), axis=-1) * 2.0 ** (int32(s) - 127)[..., None, None], "
    "(b.shape[0], b.shape[1], -1))"
)


def test_mxfp4_is_unpacked(tmp_path: Path) -> None:
    """Two e2m1 numbers a byte, the lower half first, blocks of 32 with a bare exponent."""
    b = RNG.integers(0, 256, (3, 5, 2, 16), dtype=np.uint8)
    s = RNG.integers(110, 140, (3, 5, 2), dtype=np.uint8)
    found = run_plan(tmp_path, {"b": b, "s": s, "t": FP4}, formula(MXFP4, dtype="bfloat16"))["out"]
    values = np.stack([FP4[b & 15], FP4[b >> 4]], -1).reshape(3, 5, 2, 32)
    scales = s.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert found.tolist() == (values * scales[..., None]).reshape(3, 5, 64).astype(ml_dtypes.bfloat16).tolist()


NF4_EXPR = (
    "reshape(reshape(take(t, stack(w >> 4, w & 15, axis=-1)), (-1, 64)) "
    "* (take(r, a) * repeat(m, 256, axis=0) + 0.25)[:, None], (64, 512))"
)


def test_nf4_with_nested_scales_is_unpacked(tmp_path: Path) -> None:
    """The upper half first, a scale for 64 weights, a scale and an offset for 256 of these."""
    size = 64 * 512
    tensors = {
        "w": RNG.integers(0, 256, (size // 2, 1), dtype=np.uint8), "t": NF4, "r": normal((256,)),
        "a": RNG.integers(0, 256, size // 64, dtype=np.uint8), "m": np.abs(normal((size // 64 // 256,))),
    }  # fmt: skip
    found = run_plan(tmp_path, tensors, formula(NF4_EXPR, dtype="float32"))["out"]
    scales = tensors["r"][tensors["a"]] * np.repeat(tensors["m"], 256) + np.float32(0.25)
    codes = np.stack([tensors["w"] >> 4, tensors["w"] & 15], -1).reshape(-1, 64)
    assert found.tolist() == (NF4[codes] * scales[:, None]).reshape(64, 512).tolist()


GPTQ = (
    "(float32(reshape(q[:, None, :] >> (4 * arange(8))[None, :, None] & 15, (g.shape[0], -1))) "
    "- take(float32(reshape(z[:, :, None] >> (4 * arange(8)) & 15, (s.shape[0], -1)) + 1), g, axis=0)) "
    "* take(s, g, axis=0)"
)


def test_gptq_with_activation_order_is_unpacked(tmp_path: Path) -> None:
    """Eight weights of four bits an int32, zeros stored less one, groups by `g_idx`."""
    tensors = {
        "q": RNG.integers(-(2**31), 2**31, (8, 24)).astype(np.int32),
        "z": RNG.integers(-(2**31), 2**31, (4, 3)).astype(np.int32),
        "s": np.abs(normal((4, 24))).astype(np.float16), "g": RNG.integers(0, 4, 64).astype(np.int32),
    }  # fmt: skip
    found = run_plan(tmp_path, tensors, formula(GPTQ, dtype="float16"))["out"]
    shifts = 4 * np.arange(8)
    w = (tensors["q"][:, None, :] >> shifts[None, :, None] & 15).reshape(64, 24)
    z = (tensors["z"][:, :, None] >> shifts & 15).reshape(4, 24) + 1
    made = (w - z[tensors["g"]]).astype(np.float32) * tensors["s"].astype(np.float32)[tensors["g"]]
    assert found.tolist() == made.astype(np.float16).tolist()


def test_awq_is_unpacked_and_the_naive_plan_is_noted(tmp_path: Path) -> None:
    """Codes less their zero: in uint8 that is 256 too much wherever the code is the smaller."""
    q, z = RNG.integers(0, 16, (6, 4), dtype=np.uint8), np.full((1, 4), 7, np.uint8)
    (note,) = notes(tmp_path, "(q - z) * 0.5", q=q, z=z)
    assert "'q - z' is computed in uint8" in note.message
    found = run_plan(tmp_path, {"q": q, "z": z}, formula("(int32(q) - z) * 0.5", dtype="float32"))["out"]
    assert found.tolist() == ((q.astype(np.float32) - 7) * 0.5).tolist()
