"""What becomes of values that a dtype cannot hold: what torch makes of them by default, and what a plan may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, DType
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.numerics.lookup import patterns
from brainsurgery_jax.numerics.rounding import cast_to
from tests.checkpoints import FLOATS, INTEGERS, np_dtype, plan_of, problems, read, run_plan, same

SHORT = [d for d in FLOATS if d.bits <= 16]
EACH_SHORT = pytest.mark.parametrize("dtype", SHORT, ids=str)
E4M3, E5M2, E8M0 = (BY_NAME[f"float8_{n}"] for n in ("e4m3fn", "e5m2", "e8m0fnu"))

EDGES = np.array(
    [0, -0.0, 1, -1, 240, 248, 448, 463.9, 464, 464.1, -465, 480, 57344, 61439, 61440, 65504, 65519, 65520, 3e38, 1e-9,
     2.0**-127, 2.0**-128, 2.0**-149, np.inf, -np.inf, np.nan], np.float32,
)  # fmt: skip


def floats() -> np.ndarray:
    """Every sign, exponent and nine bits of the significand, and what is beside the halves of every width."""
    upper = np.arange(1 << 18, dtype=np.uint32) << np.uint32(14)
    return np.concatenate([EDGES, *((upper | np.uint32(low)).view(np.float32) for low in (0, 1, 0x1FFF, 0x2000))])


def by_torch(x: np.ndarray, dtype: DType) -> np.ndarray:
    found = torchs(torch.from_numpy(x), getattr(torch, dtype.name))
    return found.view(torch.uint8 if dtype.bits == 8 else torch.int16).numpy().view(np_dtype(dtype))


def torchs(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A cast of torch. Up to 2.9 it makes NaN of what float8_e4m3fn cannot hold, where later ones saturate."""
    saturates = not torch.tensor(1000.0).to(dtype).float().isnan()
    return x.to(dtype) if saturates else x.clamp(-448, 448).to(dtype)


def cast(x: np.ndarray, dtype: DType, overflow: str | None = None) -> tuple[np.ndarray, bool]:
    with np.errstate(all="ignore"):
        value, fits = cast_to(x, dtype, overflow)
    return value, bool(fits)


def compiled(x: np.ndarray, dtype: DType, overflow: str | None = None) -> tuple[np.ndarray, bool]:
    with jax.enable_x64(True):
        value, fits = jax.jit(lambda x: cast_to(x, dtype, overflow))(x)
    return np.asarray(value), bool(fits)


# --- Floats -----------------------------------------------------------------------------------------------------------


@EACH_SHORT
def test_by_default_floats_become_what_torch_makes_of_them(dtype: DType) -> None:
    x = floats()
    if dtype == E8M0:  # torch drops the sign: a wrong number, where a bare exponent has no right one
        x = x[~np.signbit(x)]
    assert same(cast(x, dtype)[0], by_torch(x, dtype))


def test_a_bare_exponent_of_a_negative_number_is_nan_and_of_zero_the_least() -> None:
    found, _ = cast(np.array([-1, -1e-30, 0, -0.0], np.float32), E8M0)
    assert same(found, np.array([np.nan, np.nan, 2.0**-127, 2.0**-127], np_dtype(E8M0)))


@EACH_SHORT
def test_saturated_floats_are_finite_unless_they_were_nan(dtype: DType) -> None:
    x = floats()
    found, _ = cast(x, dtype, "saturate")
    with np.errstate(all="ignore"):
        wide, most = found.astype(np.float32), float(ml_dtypes.finfo(np_dtype(dtype)).max)
        nearest = np.clip(x, -most, most).astype(np_dtype(dtype)).astype(np.float32)
    if dtype == E8M0:
        known = x > 0
        assert np.isnan(wide[x < 0]).all() and (wide[x == 0] == 2.0**-127).all()
    else:
        known = ~np.isnan(x)
    assert same(wide[known], nearest[known])
    assert np.isnan(wide[np.isnan(x)]).all()


@EACH_SHORT
def test_nan_keeps_infinity_where_the_dtype_has_it(dtype: DType) -> None:
    x = floats()
    with np.errstate(all="ignore"):
        wanted = x.astype(np_dtype(dtype))
    assert same(cast(x, dtype, "nan")[0], wanted)


@EACH_SHORT
@pytest.mark.parametrize("overflow", [None, "saturate", "nan"])
def test_compiled_code_gives_the_same(dtype: DType, overflow: str | None) -> None:
    x = floats()
    assert same(compiled(x, dtype, overflow)[0], cast(x, dtype, overflow)[0])


@pytest.mark.parametrize("source", [d for d in FLOATS if d != E8M0], ids=str)
@pytest.mark.parametrize("overflow", [None, "saturate", "nan"])
def test_every_other_float_is_cast_as_its_float32_is(source: DType, overflow: str | None) -> None:
    with np.errstate(all="ignore"):
        x = patterns(np_dtype(source)) if source.bits <= 16 else floats().astype(np_dtype(source))
        wide = x.astype(np.float32)
    for target in (E4M3, E5M2, E8M0):
        assert same(cast(x, target, overflow)[0], cast(wide, target, overflow)[0]), target


def test_integers_saturate_as_the_floats_that_they_are() -> None:
    x = np.array([448, 500, -500, 2**40, 0])
    wide = x.astype(np.float32)
    for overflow in (None, "saturate", "nan"):
        assert same(cast(x, E4M3, overflow)[0], cast(wide, E4M3, overflow)[0])
        assert same(cast(x, BY_NAME["float16"], overflow)[0], cast(wide, BY_NAME["float16"], overflow)[0])


def test_saturating_a_wider_dtype_leaves_only_infinity_to_replace() -> None:
    found, _ = cast(np.array([1, np.inf, -np.inf, np.nan], np.float16), BY_NAME["float64"], "saturate")
    most = np.finfo(np.float64).max
    assert same(found, np.array([1, most, -most, np.nan]))


# --- Every step rounds so ---------------------------------------------------------------------------------------------

ROUNDING: list[tuple[dict[str, Any], str]] = [
    ({"scale_": {"target": "x", "by": 3}}, "x * 3"),
    ({"add_": {"from": "y", "to": "x"}}, "x + y"),
    ({"multiply_": {"from": "y", "to": "x"}}, "x * y"),
    ({"divide_": {"from": "y", "to": "x"}}, "x / y"),
    ({"lerp_": {"from": "y", "to": "x", "t": 3}}, "x + 3 * (y - x)"),
    ({"compute": {"from": {"x": "x", "y": "y"}, "expr": "x * y + 1"}}, "x * y + 1"),
]


@pytest.mark.parametrize(("step", "formula"), ROUNDING, ids=[f for _, f in ROUNDING])
def test_the_result_of_every_step_saturates_as_torch_does(step: dict[str, Any], formula: str, tmp_path: Path) -> None:
    x = np.array([448, 256, -300, 1, 0], ml_dtypes.float8_e4m3fn)
    y = np.array([2, 0.25, 448, 448, 0.5], ml_dtypes.float8_e4m3fn)
    wide = {"x": torch.from_numpy(x.astype(np.float32)), "y": torch.from_numpy(y.astype(np.float32))}
    made = torchs(eval(formula, {}, wide), torch.float8_e4m3fn).view(torch.uint8).numpy().view(x.dtype)
    assert not np.isnan(made.astype(np.float32)).any()
    assert same(run_plan(tmp_path, {"x": x, "y": y}, step)["x"], made)
    with jax.enable_x64(True):
        assert same(jax.jit(bs.load({"transforms": [step]}).apply)({"x": x, "y": y})["x"], made)


def test_a_product_of_matrices_saturates(tmp_path: Path) -> None:
    w = np.full((4, 4), 30, ml_dtypes.float8_e4m3fn)
    found = run_plan(tmp_path, {"w": w}, {"matmul": {"from_a": "w", "from_b": "w", "to": "p"}})["p"]
    assert (found.astype(np.float32) == 448).all()


# --- Integers ---------------------------------------------------------------------------------------------------------

UNFIT = {"300": 300.0, "-1": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("value", UNFIT.values(), ids=UNFIT)
def test_a_value_that_an_integer_cannot_hold_stops_the_run(value: float, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"x": np.array([1, value], np.float32)}, {"cast_": {"target": "x", "to": "uint8"}})
    with pytest.raises(PlanError, match=r"cast: a value does not fit the integer dtype, or is NaN.*\(input 'x'\)"):
        bs.load(plan).run(durable=False)
    assert not Path(plan["output"]["path"]).exists()


@pytest.mark.parametrize("target", INTEGERS, ids=str)
@pytest.mark.parametrize("source", [*INTEGERS, *(d for d in FLOATS if d.bits >= 16)], ids=str)
def test_all_that_fits_is_cast_and_nothing_else(source: DType, target: DType) -> None:
    info = np.iinfo(np_dtype(target))
    ends = [info.min, info.max, 0, 1]
    if source.kind == "float":
        most = float(ml_dtypes.finfo(np_dtype(source)).max)
        near = np.array([v for v in ends if abs(float(v)) <= most], np.float64).astype(np_dtype(source))
        inside = near[[info.min <= int(float(v)) <= info.max for v in near]]  # the largest may be rounded up
        outside = np.array([v for v in (np.nan, np.inf, 2.0 * info.max) if not most < v < np.inf], np_dtype(source))
    else:
        own = np.iinfo(np_dtype(source))
        inside = np.array([v for v in ends if own.min <= v <= own.max], np_dtype(source))
        outside = np.array([v for v in (info.min - 1, info.max + 1) if own.min <= v <= own.max], np_dtype(source))
    for how in (cast, compiled):
        value, fits = how(inside, target)
        assert (value.tolist(), fits) == ([int(float(v)) if source.kind == "float" else int(v) for v in inside], True)
        for v in outside:
            assert not how(np.array([0, v], np_dtype(source)), target)[1], v


@pytest.mark.parametrize("how", [cast, compiled])
def test_integers_can_be_saturated_and_nan_is_zero_then(how: Any) -> None:
    x = np.array([300, -300, np.inf, -np.inf, np.nan, 2.9, -0.9], np.float32)
    value, fits = how(x, BY_NAME["int8"], "saturate")
    assert (value.tolist(), fits) == ([127, -128, 127, -128, 0, 2, 0], True)
    value, fits = how(np.array([300, -1, 7]), BY_NAME["uint8"], "saturate")
    assert (value.tolist(), fits) == ([255, 0, 7], True)
    value, fits = how(np.array([2.0**40, -(2.0**40)], np.float32), BY_NAME["int32"], "saturate")
    assert (value.tolist(), fits) == ([2**31 - 1, -(2**31)], True)


def test_integers_can_wrap_as_numpy_and_torch_wrap_them(tmp_path: Path) -> None:
    x = np.array([300, -1, 255, -(2**40) - 3])
    step = {"cast_": {"target": "x", "to": "uint8", "overflow": "wrap"}}
    assert same(run_plan(tmp_path, {"x": x}, step)["x"], x.astype(np.uint8))
    assert torch.from_numpy(x).to(torch.uint8).tolist() == x.astype(np.uint8).tolist()


@pytest.mark.parametrize(
    ("to", "overflow", "why"),
    [
        ("int8", "nan", "int8 has no NaN"),
        ("int8", "wrap", "only integers wrap, not float32 cast to int8"),
        ("float16", "wrap", "only integers wrap, not float32 cast to float16"),
    ],
)
def test_a_treatment_that_a_dtype_does_not_have_is_refused(to: str, overflow: str, why: str, tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"x": EDGES}, {"cast_": {"target": "x", "to": to, "overflow": overflow}})
    assert (error.code, error.message.partition(": ")[2].partition(" (")[0]) == ("overflow-unknown", why)


def test_the_remedy_mends_the_plan(tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"x": EDGES}, {"cast_": {"target": "x", "to": "int8", "overflow": "wrap"}})
    assert "`overflow: saturate`" in error.hint
    step = {"cast_": {"target": "x", "to": "int8", "overflow": "saturate"}}
    assert run_plan(tmp_path, {"x": EDGES}, step)["x"].max() == 127


# --- In a plan --------------------------------------------------------------------------------------------------------


def test_a_long_tensor_is_looked_up_to_the_same_values(tmp_path: Path) -> None:
    """Longer than the table of all values of its dtype, it is cast by that table."""
    x = np.tile(np.array([448, 500, -np.inf, np.nan, 1], np.float16), 1 << 15)
    for overflow in (None, "nan", "saturate"):
        step = {"cast_": {"target": "x", "to": "float8_e4m3fn"} | ({"overflow": overflow} if overflow else {})}
        found = run_plan(tmp_path, {"x": x}, step)["x"]
        assert same(found, np.tile(cast(x[:5], E4M3, overflow)[0], 1 << 15)), overflow


def test_a_long_tensor_with_one_value_that_does_not_fit_stops_the_run(tmp_path: Path) -> None:
    x = np.ones(1 << 17, np.float16)
    step = {"cast_": {"target": "x", "to": "int8"}}
    assert (run_plan(tmp_path, {"x": x}, step)["x"] == 1).all()
    x[-1] = 200
    with pytest.raises(PlanError, match="does not fit"):
        run_plan(tmp_path, {"x": x}, step)


@pytest.mark.parametrize("expr", ["x * 2", "x - mean(x)"])
def test_the_dtype_of_an_expression_takes_the_same_key(expr: str, tmp_path: Path) -> None:
    x = np.array([300, -300, 1, 0], np.float32)
    made = {"x * 2": x * 2, "x - mean(x)": x - np.float32(0.25)}[expr]
    for overflow in (None, "nan", "saturate"):
        key = {"overflow": overflow} if overflow else {}
        step = {"compute": {"from": {"x": "x"}, "expr": expr, "to": "e", "dtype": "float8_e4m3fn"} | key}
        assert same(run_plan(tmp_path, {"x": x}, step)["e"], cast(made, E4M3, overflow)[0]), overflow
    step = {"compute": {"from": {"x": "x"}, "expr": expr, "to": "e", "dtype": "int8"}}
    with pytest.raises(PlanError, match="a value does not fit int8, or is NaN"):
        run_plan(tmp_path, {"x": x}, step)
    step["compute"]["overflow"] = "saturate"
    assert run_plan(tmp_path, {"x": x}, step)["e"].tolist() == cast(made, BY_NAME["int8"], "saturate")[0].tolist()


def test_a_conversion_takes_the_same_option(tmp_path: Path) -> None:
    x = np.array([464.1, 500, 1, np.inf], np.float32)
    source = plan_of(tmp_path, {"x": x}, [])["inputs"][0].partition("::")[2]
    for overflow in (None, "nan", "saturate"):
        out = tmp_path / f"{overflow}.safetensors"
        bs.convert(source, str(out), dtype="float8_e4m3fn", overflow=overflow, layout="none")
        assert same(read(out)["x"], cast(x, E4M3, overflow)[0]), overflow
    with pytest.raises(PlanError, match="needs a dtype, and none is given"):
        bs.convert(source, str(tmp_path / "x.safetensors"), overflow="nan")
    with pytest.raises(PlanError, match="overflow 'wrap' is unknown"):
        bs.convert(source, str(tmp_path / "x.safetensors"), dtype="float16", overflow="wrap")


def test_under_jit_a_cast_that_values_can_stop_asks_for_checks_or_for_overflow() -> None:
    x = np.array([1.5, 300], np.float32)
    plan = bs.load({"transforms": [{"cast_": {"target": "x", "to": "int8"}}]})
    with pytest.raises(PlanError, match="cast: cannot stop a traced function for values that it refuses"):
        jax.jit(plan.apply)({"x": x})
    _, verdicts = jax.jit(lambda t: plan.apply(t, checks="return"))({"x": x})
    assert [bool(v) for v in verdicts.values()] == [False]
    saturated = bs.load({"transforms": [{"cast_": {"target": "x", "to": "int8", "overflow": "saturate"}}]})
    assert jax.jit(saturated.apply)({"x": x})["x"].tolist() == [1, 127]


# --- Floats that become integers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [
    {"cast_": {"target": "w", "to": "int8"}},
    {"cast": {"from": "w", "to": "v", "dtype": "uint8", "overflow": "saturate"}},
])  # fmt: skip
def test_floats_as_they_came_that_become_integers_are_noted(step: dict[str, Any], tmp_path: Path) -> None:
    (note,) = problems(tmp_path, {"w": np.ones((2, 2), np.float16)}, step)
    assert (note.code, note.severity) == ("cast-truncates", "note")
    assert "every value between -1 and 1 becomes 0" in note.message


def _computed(expr: str, **keys: Any) -> dict[str, Any]:
    return {"compute": {"from": {"w": "w"}, "expr": expr, "to": "v", **keys}}


@pytest.mark.parametrize(("step", "text"), [
    (_computed("w", dtype="int8"), "'w' is float16 and becomes int8"),
    (_computed("int8(w)"), "'w' is float16 and becomes int8"),
    (_computed("float32(int16(w.T[0]))", dtype="float32"), "'w.T[0]' is float32 and becomes int16"),
])  # fmt: skip
def test_floats_as_they_came_are_noted_in_expressions_too(step: dict[str, Any], text: str, tmp_path: Path) -> None:
    (note,) = problems(tmp_path, {"w": np.ones((2, 2), np.float16)}, step)
    assert (note.code, note.severity) == ("cast-truncates", "note")
    assert text in note.message
    assert "every value between -1 and 1 becomes 0" in note.message


@pytest.mark.parametrize("expr", ["w * 127", "w / 2 + 1", "mean(w)", "where(w > 0, 0.5, 1.0)", "clip(w * 9, -8, 7)"])
def test_what_an_expression_computes_and_cuts_off_is_noted(expr: str, tmp_path: Path) -> None:
    (note,) = problems(tmp_path, {"w": np.ones((2, 2), np.float32)}, _computed(expr, dtype="int8"))
    assert (note.code, note.hint) == ("cast-truncates", f"To round to nearest write `round({expr})` for `{expr}`.")


@pytest.mark.parametrize("expr", [
    "round(w * 127)", "clip(round(w / 0.1), -8, 7)", "sign(w)", "w // 2", "floor(w) * 2 + 1", "int8(floor(w)).T",
    "where(w > 0, 1.0, 0.0)", "sum(w > 0)", "concat(round(w), zeros_like(w))", "abs(ceil(w))[0]",
])  # fmt: skip
def test_whole_numbers_are_not_noted(expr: str, tmp_path: Path) -> None:
    assert problems(tmp_path, {"w": np.ones((2, 2), np.float32)}, _computed(expr, dtype="int8")) == ()


def test_what_an_earlier_step_made_may_be_whole(tmp_path: Path) -> None:
    steps = [{"scale_": {"target": "w", "by": 127}}, _computed("int8(w)")]
    assert problems(tmp_path, {"w": np.ones((2, 2), np.float32)}, steps) == ()


@pytest.mark.parametrize(("steps", "dtype"), [
    ([{"cast_": {"target": "w", "to": "bfloat16"}}], np.float32),
    ([{"cast_": {"target": "w", "to": "bool"}}], np.float32),
    ([{"cast_": {"target": "w", "to": "int8"}}], np.int32),
    ([{"scale_": {"target": "w", "by": 127}}, {"cast_": {"target": "w", "to": "int8"}}], np.float32),
])  # fmt: skip
def test_what_was_scaled_or_loses_nothing_is_not_noted(steps: list[Any], dtype: Any, tmp_path: Path) -> None:
    assert not problems(tmp_path, {"w": np.ones((2, 2), dtype)}, steps)


def test_the_remedy_of_the_note_keeps_the_values(tmp_path: Path) -> None:
    w = np.array([0.5, -0.25], np.float32)
    cast = {"cast_": {"target": "w", "to": "int8"}}
    (note,) = problems(tmp_path, {"w": w}, cast)
    assert note.hint == "Scale weights in an earlier step, or cast to a float dtype."
    assert run_plan(tmp_path, {"w": w}, [{"scale_": {"target": "w", "by": 100}}, cast])["w"].tolist() == [50, -25]
    as_float = run_plan(tmp_path, {"w": w}, {"cast_": {"target": "w", "to": "float16"}})["w"]
    assert as_float.tolist() == w.tolist()
