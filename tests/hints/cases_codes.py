"""Mistakes with quantized weights, what their hints say to do, and what must come out of it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import yaml

from tests.hints.cases import Case, Mend, Plan, quoted
from tests.hints.cases_ops import put

FP8 = ml_dtypes.float8_e4m3fn
W = np.array([[1, 2], [4, 8]], np.float32)
CODES = {"x": W.astype(FP8), "x_scale": np.array([[2], [4]], np.float32)}
FLOATS = {"x": W * CODES["x_scale"], "x_scale": None}
RISEN, SCALES_OF_W = np.array([[224, 448], [224, 448]], np.float32), np.array([[2], [8]], np.float32) / 448
I8 = np.array([[1, 127], [127, 64]], np.int8)
ONE = {"w": np.array([[127, 1], [-127, 2]], np.float32)}
ONE_CODES = {"w": ONE["w"].astype(np.int8), "w_scale": np.ones((2, 1), np.float32)}
B = {"unused": np.ones(1, np.float32)}


def first(plan: Plan, hint: str) -> Plan:
    """Do the step that stands between the backticks before all others."""
    plan["transforms"].insert(0, yaml.safe_load(quoted(hint)[0]))
    return plan


def last(plan: Plan, hint: str) -> Plan:
    """Do the step that stands between the backticks after all others."""
    plan["transforms"].append(yaml.safe_load(quoted(hint)[0]))
    return plan


def dequantize(target: str = "a::.*", **keys: Any) -> list[Any]:
    return [{"dequantize": {"target": target, "to": "float32"} | keys}]


def quantize(target: str = "a::.*", **keys: Any) -> list[Any]:
    return [{"quantize": {"target": target, "to": "int8"} | keys}]


def quantize_last(plan: Plan, hint: str) -> Plan:
    """Let the first step be the last."""
    first, *rest = plan["transforms"]
    return {**plan, "transforms": [*rest, first]} if "Let `quantize` come after" in hint else plan


def only(target: str, says: str) -> Mend:
    return put(says, target=target)


def case(name: str, code: str, transforms: list[Any], mend: Mend, a: Any, expect: Any = (), *,
         other: Any = B, **keys: Any) -> Case:  # fmt: skip
    return Case(name, code, transforms, mend, dict(expect), b=other, a=a, **keys)


NO_CODES = {"v.qweight": np.ones((4, 8), np.int32), "v.qzeros": np.ones((1, 1), np.int32)}

NO_WORDS = {"w.weight": None, "w.qweight": np.zeros((8, 1), np.int32), "w.qzeros": np.zeros((1, 1), np.int32),
            "w.scales": np.ones((1, 8), np.float16)}  # fmt: skip

CODED = [
    case("a cast of codes", "scale-ignored", [{"cast_": {"target": "a::x", "to": "bfloat16"}}], first, CODES,
         {"x": FLOATS["x"].astype(ml_dtypes.bfloat16), "x_scale": None}),
    case("a constant among codes", "scale-ignored",
         [{"fill_": {"target": "a::x::[:1]", "mode": "constant", "value": 5}}], first, CODES,
         {"x": np.array([[5, 5], FLOATS["x"][1]]).astype(ml_dtypes.bfloat16), "x_scale": None}),
    case("codes times scales in the place of codes", "scale-ignored",
         [{"compute": {"from": {"w": "a::x", "s": "a::x_scale"}, "expr": "w * s"}}],
         lambda plan, hint: {**plan, "transforms": [yaml.safe_load(quoted(hint)[0])]}, CODES, FLOATS),
    case("codes that move without their scales", "scale-left", [{"move": {"from": "a::x", "to": "a::y"}}], last, CODES,
         {"x": None, "x_scale": None, "y": CODES["x"], "y_scale": CODES["x_scale"]}, note=True),
    case("codes that are cut without their scales", "scale-left",
         [{"copy": {"from": "a::x::[:1]", "to": "a::y"}}, {"copy": {"from": "a::x_scale", "to": "a::y_scale"}},
          {"delete": {"target": "a::x"}}, {"delete": {"target": "a::x_scale"}}],
         lambda plan, hint: first({**plan, "transforms": [
             {"copy": {"from": "a::x::[:1]", "to": "a::y"}}, {"delete": {"target": "a::x"}}]}, hint), CODES,
         {"x": None, "x_scale": None, "y": FLOATS["x"][:1].astype(ml_dtypes.bfloat16)}, note=True),
    case("codes that are cast after a rename", "scale-ignored",
         [{"move": {"from": "a::x", "to": "a::y"}}, {"cast_": {"target": "a::y", "to": "bfloat16"}}], first, CODES,
         {"x": None, "x_scale": None, "y": FLOATS["x"].astype(ml_dtypes.bfloat16)}),
    case("codes beside the scales of others", "scale-mismatch", [{"assign": {"from": "a::x", "to": "a::z"}}], first,
         {**CODES, "z": CODES["x"][::-1], "z_scale": CODES["x_scale"] * 2},
         {**dict.fromkeys("xz", FLOATS["x"].astype(ml_dtypes.bfloat16)), "x_scale": None, "z_scale": None}),
    case("codes of another alias without their scales", "scale-left", [{"copy": {"from": "b::x", "to": "a::y"}}],
         first, {"z": W}, {"y": FLOATS["x"].astype(ml_dtypes.bfloat16)}, note=True, other=CODES),
    case("codes that took another's name, dequantized", "scale-mismatch",
         [{"assign": {"from": "a::x", "to": "a::z"}}, *dequantize()],
         lambda plan, hint: {**plan, "transforms": plan["transforms"][::-1]} if "let this step come before" in hint
         else plan, {**CODES, "z": CODES["x"][::-1], "z_scale": CODES["x_scale"] * 2},
         {**FLOATS, "z": FLOATS["x"], "z_scale": None}),
    case("codes that the plan makes and reverses alone", "scale-mismatch",
         [*quantize("a::w", to="float8_e4m3fn"), {"take_": {"target": "a::w", "dim": 0, "indices": [1, 0]}}],
         quantize_last, {"w": W}, {"w": RISEN[::-1].astype(FP8), "w_scale": SCALES_OF_W[::-1]}),
    case("codes that the plan makes and casts elsewhere", "scale-ignored",
         [*quantize("a::w", to="float8_e4m3fn"), {"move": {"from": "a::w", "to": "a::v"}},
          {"move": {"from": "a::w_scale", "to": "a::v_scales"}}, {"cast_": {"target": "a::v", "to": "float32"}}],
         lambda plan, hint: {**plan, "transforms": plan["transforms"][3:] and [
             {"cast_": {"target": "a::w", "to": "float32"}}, *plan["transforms"][:1]]} if "Compute before" in hint
         else plan, {"w": W}, {"w": RISEN.astype(FP8), "w_scale": SCALES_OF_W}),
    case("floats of eight bits", "dtype-unsupported", dequantize(to="float8_e5m2"),
         put("Write `to: bfloat16`, or float16, float32", to="float32"), CODES, FLOATS),
    case("nothing that is quantized", "codes-unknown", dequantize(),
         lambda plan, hint: {**plan, "transforms": [
             {"move": {"from": "a::s", "to": "a::x_scale"}}, *plan["transforms"]]} if "`move` renames them" in hint
         else plan,
         {"x": CODES["x"], "s": CODES["x_scale"]}, {"s": None, "x": FLOATS["x"]}),
    case("scales that are whole numbers", "codes-unknown", dequantize(),
         only("a::x", "Scales are floats. Narrow the pattern"),
         {**CODES, "i": I8, "i_scale": np.ones((), np.int32)}, FLOATS),
    case("blocks of unknown size", "codes-unknown", dequantize(),
         put("Say how many rows and columns share a scale: `block: [3, 2]`. Sizes up to [4, 2] fit", block=[3, 2]),
         {"x": np.ones((5, 2), FP8), "x_scale": np.array([[2], [3]], np.float32)},
         {"x": np.array([[2, 2]] * 3 + [[3, 3]] * 2, np.float32), "x_scale": None}),
    case("blocks of several sizes", "codes-unknown", dequantize(),
         put("Say how many rows and columns share a scale: `block: [4, 1]`", block=[4, 1]),
         {"x": np.ones((6, 1), FP8), "x_scale": np.array([[2], [3]], np.float32)},
         {"x": np.array([[2]] * 4 + [[3]] * 2, np.float32), "x_scale": None}),
    case("one block for scales of smaller ones", "codes-unknown", dequantize(block=[128, 128]),
         put("Leave out `block`: the shape of these scales says", block=None), CODES, FLOATS),
    case("scales of parts that were joined", "codes-unknown", dequantize(),
         lambda plan, hint: {**plan, "transforms": [
             {"repeat_": {"target": "a::x_scale", "times": 2, "mode": "each"}}, *plan["transforms"]]}
         if "Repeat them to one for each row" in hint else plan,
         {"x": np.ones((4, 2), FP8), "x_scale": np.array([2, 3], np.float32)},
         {"x": np.array([[2, 2]] * 2 + [[3, 3]] * 2, np.float32), "x_scale": None}),
    case("packed words beside one scale", "codes-unknown", dequantize(), only("a::x", "Narrow the pattern, so that it"),
         {**CODES, **NO_CODES, "v.scales": np.ones(8, np.float16)}, FLOATS, of="ops/quantize.py"),
    case("packed words that do not fit", "codes-unknown", dequantize(), only("a::x", "Narrow the pattern, so that it"),
         {**CODES, **NO_CODES, "v.scales": np.ones((3, 8), np.float16)}, FLOATS, of="ops/_codes.py"),
    case("packed rows without a shape of two", "codes-unknown", dequantize(),
         only("a::x", "Narrow the pattern, so that it"),
         {**CODES, "v.weight_packed": np.ones((4, 8), np.int32), "v.weight_scale": np.ones((4, 1), np.float16),
          "v.weight_shape": np.array([4])}, FLOATS, of="ops/_compressed.py"),
    case("a bias", "not-a-matrix", quantize(), only("a::w", "Narrow the pattern to matrices"),
         {**ONE, "bias": np.ones(2, np.float32)}, ONE_CODES),
    case("whole numbers to quantize", "dtype-unsupported", quantize("a::v"),
         lambda plan, hint: {**plan, "transforms": [
             yaml.safe_load(quoted(hint)[0].replace("...", "'a::v'")), *plan["transforms"]]},
         {"v": np.array([[127, 1]], np.int16)},
         {"v": np.array([[127, 1]], np.int8), "v_scale": np.ones((1, 1), np.float32)}),
    case("codes to quantize", "dtype-unsupported", quantize("a::w|x"), only("a::w", "Narrow the pattern, so that it"),
         {**ONE, "x": CODES["x"]}, ONE_CODES, of="ops/quantize.py"),
    case("quantized integers to prune", "dtype-unsupported",
         [{"wanda_": {"target": "a::x", "norms": "a::norms", "ratio": 0.5}}], first,
         {"x": I8, "x_scale": ONE_CODES["w_scale"], "norms": np.ones(2, np.float32)},
         {"x": (I8 * (I8 == 127)).astype(ml_dtypes.bfloat16), "x_scale": None}),
    case("quantized integers to quantize", "dtype-unsupported", quantize("a::x", to="float8_e4m3fn"), first,
         {"x": np.diag(np.array([7, 7], np.int8)), "x_scale": np.ones((2, 1), np.float32)},
         {"x": np.diag([448, 448]).astype(FP8), "x_scale": np.full((2, 1), 7 / 448, np.float32)}),
    case("units of quantized integers", "dtype-unsupported", [{"rebasin": {"target": "a::x", "like": "b"}}], first,
         {"x": I8, "x_scale": ONE_CODES["w_scale"]},
         {"x": I8.astype(ml_dtypes.bfloat16), "x_scale": None}, other={"x": I8.astype(ml_dtypes.bfloat16)}),
    case("a direction of quantized integers", "dtype-unsupported",
         [{"ablate_": {"target": "a::x", "direction": "b::r"}}], first,
         {"x": I8, "x_scale": ONE_CODES["w_scale"]},
         {"x": (I8 * np.array([[0], [1]])).astype(ml_dtypes.bfloat16), "x_scale": None},
         other={"r": np.array([2, 0], np.float32)}),
    case("blocks of rows", "codes-unknown", quantize("a::w", per="channel", block=[2, 2]),
         put("Leave out `block`.", block=None), ONE, ONE_CODES),
    case("blocks of mxfp4", "codes-unknown", quantize("a::w", to="mxfp4", block=[2, 2]),
         put("leave out `per` and `block`", block=None), {"w": np.zeros((1, 32), np.float32)},
         {"w": None, "w_blocks": np.zeros((1, 1, 16), np.uint8), "w_scales": np.full((1, 1), 127, np.uint8)}),
    case("groups of int8", "codes-unknown", quantize("a::w", group=32), put("Leave out `group`.", group=None), ONE,
         ONE_CODES),
    case("inputs that make no groups", "codes-unknown", quantize("a::w.weight", to="awq"),
         put("or choose `group`", group=8), {"w.weight": np.zeros((8, 8), np.float32)}, NO_WORDS),
    case("a name that no words have", "codes-unknown", quantize("a::w.weight|w.other", to="awq", group=8),
         only("a::w.weight", "Narrow the pattern to matrices that are"),
         {"w.weight": np.zeros((8, 8), np.float32), "w.other": np.zeros((8, 8), np.float32)}, NO_WORDS),
    case("rows that are no groups", "codes-unknown", quantize(to="mxfp4"),
         only("a::w", "Narrow the pattern to matrices whose inputs are."),
         {"w": np.zeros((1, 32), np.float32), "v": np.zeros((1, 30), np.float32)},
         {"w": None, "w_blocks": np.zeros((1, 1, 16), np.uint8), "w_scales": np.full((1, 1), 127, np.uint8)}),
]  # fmt: skip
