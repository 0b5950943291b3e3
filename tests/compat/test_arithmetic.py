"""Spec 3.0 and 3.6 to 3.11: elementwise arithmetic, `matmul`, `clamp`, `cast`. `row.py` tells how a row reads."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoints import counting, normal
from tests.compat.row import Row, accepted, check, refused

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
A, B, C = counting((4, 6)) - 7, 5 - counting((4, 6)) * 3, counting((4, 6)) / 4
ABC = {"a": A, "b": B, "c": C}
BAD = ABC | {"v": np.zeros((6, 4), F32), "h": A.astype(F16)}
BYTES = {"a": np.array([200, 1, 255], np.uint8), "b": np.array([100, 2, 1], np.uint8), "c": np.zeros(3, np.uint8)}
BITS = {"a": np.array([0, 0, 1, 1], bool), "b": np.array([0, 1, 0, 1], bool), "c": np.zeros(4, bool)}
LAYERS = {"x.w": A, "y.w": B, "x.d": C, "y.d": C + 1}
CHAIN = {"a": A, "aa": B, "aaa": C}
BELOW = A.copy()
BELOW[1:3] = 2 * BELOW[1:3]
BFS = {"w": normal((3, 5)).astype(BF16), "h": normal((3, 5), seed=1).astype(F16)}
M = {"x": normal((3, 4)), "y": normal((4, 5), seed=1), "v": normal((4,), seed=2), "t": normal((2, 3, 4), seed=3),
     "half": normal((4, 5)).astype(F16), "n": np.zeros((2, 2), F32)}  # fmt: skip
WHOLE = {"i": np.array([[1, 2], [3, -4]], np.int32), "j": np.array([[0, 1], [1, 0]], np.int32),
         "p": np.ones((2, 2), bool)}  # fmt: skip
ODD = np.array([-3.7, -0.5, 0.0, 0.3, 2.5, np.nan, np.inf], F32)
LONG = np.array([0.1, -2.7, 1e30, 65520.0, 1 + 2**-9 + 2**-20], F32)


def three(op: str) -> tuple[Row, ...]:
    """What all ops that write `a` with `b` into `to` have in common."""
    call = f"{op}: {{ from_a: %s, from_b: %s, to: %s }}"
    return (
        refused(op, "something must match", call % ("none", "b", "c"), ABC, "no-match", "no tensor matches 'none'"),
        refused(op, "the second source must exist", call % ("a", "none", "c"), ABC, "tensor-missing", "'none'"),
        refused(op, "the destination must exist", call % ("a", "b", "none"), ABC, "tensor-missing", "'none'"),
        refused(op, "shapes are not broadcast", call % ("a", "v", "c"), BAD, "shapes-differ",
                r"f32\[4,6\].*f32\[6,4\]"),
        refused(op, "dtypes are not promoted", call % ("a", "h", "c"), BAD, "dtypes-differ", r"f32\[4,6\].*f16\[4,6\]"),
        refused(op, "the destination has the same shape", call % ("a", "b", "v"), BAD, "dest-differs", r"f32\[6,4\]"),
        refused(op, "two items cannot write one name", call % (r"'(.)\.w'", r"'\1.d'", "x.w"), LAYERS, "names-collide",
                r"x\.w"),
        refused(op, "all three references are of one kind", call % ("[a]", "b", "[c]"), ABC, "kinds-differ", "list"),
        refused(op, "all three keys are required", f"{op}: {{ from_a: a, from_b: b }}", ABC, "key-missing", "'to'"),
    )  # fmt: skip


def onto(op: str) -> tuple[Row, ...]:
    """What the ops that change `to` by `from` have in common."""
    call = f"{op}: {{ from: %s, to: %s }}"
    return (
        refused(op, "something must match", call % ("none", "c"), ABC, "no-match", "no tensor matches 'none'"),
        refused(op, "the destination must exist", call % ("a", "none"), ABC, "tensor-missing", "'none'"),
        refused(op, "shapes are not broadcast", call % ("v", "c"), BAD, "shapes-differ", r"f32\[4,6\].*f32\[6,4\]"),
        refused(op, "dtypes are not promoted", call % ("h", "c"), BAD, "dtypes-differ", r"f32\[4,6\].*f16\[4,6\]"),
        refused(op, "two sources cannot write one name", call % (r"'[ab]'", "c"), ABC, "names-collide", "'c'"),
    )


ADD = (
    accepted("add", "the sum goes into a tensor that exists", "add: { from_a: a, from_b: b, to: c }", ABC,
             {"c": A + B}),
    accepted("add", "the destination may be an operand", "add: { from_a: a, from_b: a, to: a }", ABC, {"a": A + A}),
    accepted("add", "the second source and the destination are templates of the first",
             r"add: { from_a: '(.*)\.w', from_b: '\1.d', to: '\1.w' }", LAYERS, {"x.w": A + C, "y.w": B + C + 1}),
    accepted("add", "slices are allowed on all three",
             "add: { from_a: 'a::[0]', from_b: 'b::[1]', to: 'c::[2]' }", ABC,
             {"c": np.stack([C[0], C[1], A[0] + B[1], C[3]])}),
    accepted("add", "integers wrap", "add: { from_a: a, from_b: b, to: c }", BYTES,
             {"c": np.array([44, 3, 0], np.uint8)}),
    accepted("add", "booleans are or-ed", "add: { from_a: a, from_b: b, to: c }", BITS, {"c": BITS["a"] | BITS["b"]}),
    *three("add"),
    accepted("subtract", "the second is taken from the first", "subtract: { from_a: a, from_b: b, to: c }", ABC,
             {"c": A - B}),
    accepted("subtract", "integers wrap", "subtract: { from_a: b, from_b: a, to: c }", BYTES,
             {"c": np.array([156, 1, 2], np.uint8)}),
    refused("subtract", "booleans have no difference", "subtract: { from_a: a, from_b: b, to: c }", BITS,
            "dtype-unsupported", "boolean"),
    *three("subtract"),
    accepted("multiply", "elementwise", "multiply: { from_a: a, from_b: b, to: c }", ABC, {"c": A * B}),
    accepted("multiply", "booleans are and-ed", "multiply: { from_a: a, from_b: b, to: c }", BITS,
             {"c": BITS["a"] & BITS["b"]}),
    *three("multiply"),
    accepted("add_", "the source is added to the destination", "add_: { from: a, to: c }", ABC, {"c": C + A}),
    accepted("add_", "only the slice changes", "add_: { from: 'a::[1:3]', to: 'a::[1:3]' }", ABC, {"a": BELOW}),
    accepted("add_", "an item reads what the items before it wrote",
             r"add_: { from: '(a|aa)', to: 'a\1' }", CHAIN, {"aa": B + A, "aaa": C + (B + A)}),
    *onto("add_"),
    accepted("subtract_", "the source is taken from the destination", "subtract_: { from: a, to: c }", ABC,
             {"c": C - A}),
    accepted("subtract_", "across aliases", r"subtract_: { from: 'base::(.*)', to: 'tuned::\1' }",
             {"base": {"a": A, "b": B}, "tuned": {"a": B, "b": C}}, {"tuned::a": B - A, "tuned::b": C - B}),
    *onto("subtract_"),
)  # fmt: skip

MATMUL = (
    accepted("matmul", "a matrix product under a new name", "matmul: { from_a: x, from_b: y, to: xy }", M,
             {"xy": (M["x"].astype(F64) @ M["y"]).astype(F32)}, within=1e-5),
    accepted("matmul", "two vectors give a scalar", "matmul: { from_a: v, from_b: v, to: vv }", M,
             {"vv": np.dot(M["v"].astype(F64), M["v"]).astype(F32)}, within=1e-5),
    accepted("matmul", "leading axes are a batch and broadcast", "matmul: { from_a: t, from_b: y, to: ty }", M,
             {"ty": (M["t"].astype(F64) @ M["y"]).astype(F32)}, within=1e-5),
    accepted("matmul", "the operands may be slices", "matmul: { from_a: 'x::[:2]', from_b: 'y::[:, 0]', to: s }", M,
             {"s": (M["x"][:2].astype(F64) @ M["y"][:, 0]).astype(F32)}, within=1e-5),
    accepted("matmul", "integers stay integers", "matmul: { from_a: i, from_b: j, to: ij }", WHOLE,
             {"ij": WHOLE["i"] @ WHOLE["j"]}),
    refused("matmul", "booleans have no product", "matmul: { from_a: p, from_b: p, to: q }", WHOLE,
            "dtype-unsupported", "boolean"),
    refused("matmul", "inner sizes must agree", "matmul: { from_a: x, from_b: x, to: xx }", M, "shapes-differ",
            "4 against 3"),
    refused("matmul", "dtypes are not promoted", "matmul: { from_a: x, from_b: half, to: xy }", M, "dtypes-differ",
            r"f32\[3,4\].*f16\[4,5\]"),
    refused("matmul", "the destination must be new", "matmul: { from_a: x, from_b: y, to: n }", M, "dest-exists",
            "'n' exists already"),
    refused("matmul", "the destination takes no slice", "matmul: { from_a: x, from_b: y, to: 'n::[0]' }", M,
            "slice-not-allowed", "a slice is not allowed here"),
)  # fmt: skip

SCALE = (
    accepted("scale", "the product goes to a new name", "scale: { from: a, to: n, by: 0.5 }", ABC, {"n": A * F32(0.5)}),
    accepted("scale", "of a slice", "scale: { from: 'a::[:2]', to: n, by: -1 }", ABC, {"n": -A[:2]}),
    accepted("scale", "bfloat16 and float16 are rounded once, from the product",
             "scale: { from: '(w|h)', to: '\\1.n', by: 0.3 }", BFS,
             {f"{k}.n": (x.astype(F32) * F32(0.3)).astype(x.dtype) for k, x in BFS.items()}),
    accepted("scale", "a number may be written as text", "scale: { from: a, to: n, by: '2.5e-1' }", ABC,
             {"n": A * F32(0.25)}),
    refused("scale", "the destination must be new", "scale: { from: a, to: b, by: 2 }", ABC, "dest-exists", "'b'"),
    refused("scale", "`by` is required", "scale: { from: a, to: n }", ABC, "key-missing", "missing key 'by'"),
    refused("scale", "other text is no number", "scale: { from: a, to: n, by: twice }", ABC, "value-type",
            "expected a number, got the text 'twice'"),
    refused("scale", "null is no number", "scale: { from: a, to: n, by: ~ }", ABC, "value-type",
            "expected a number, got None"),
    accepted("scale_", "in place, on a slice", "scale_: { target: 'a::[:, :3]', by: -1 }", ABC,
             {"a": np.concatenate([-A[:, :3], A[:, 3:]], 1)}),
    accepted("scale_", "of every match", "scale_: { target: '[ab]', by: 2 }", ABC, {"a": A * 2, "b": B * 2}),
    accepted("scale_", "complex numbers can be scaled", "scale_: { target: z, by: 2 }",
             {"z": (A + 1j * B).astype(np.complex64)}, {"z": (2 * A + 2j * B).astype(np.complex64)}),
    refused("scale_", "booleans cannot be scaled", "scale_: { target: p, by: 2 }", WHOLE, "dtype-unsupported", "bool"),
    refused("scale_", "something must match", "scale_: { target: none, by: 2 }", ABC, "no-match", "'none'"),
    refused("scale_", "there is no destination", "scale_: { target: a, to: n, by: 2 }", ABC, "key-unknown", "'to'"),
)  # fmt: skip

CLAMP = (
    accepted("clamp", "both bounds", "clamp: { from: a, to: n, min: -2, max: 3.5 }", ABC, {"n": A.clip(-2, F32(3.5))}),
    accepted("clamp", "one bound is enough, NaN stays NaN", "clamp: { from: odd, to: n, max: 1 }", {"odd": ODD},
             {"n": np.minimum(ODD, F32(1))}),
    accepted("clamp", "bounds are rounded to the dtype", "clamp: { from: w, to: n, min: 0.3 }", BFS,
             {"n": np.maximum(BFS["w"], np.asarray(0.30078125, BF16))}),
    refused("clamp", "there must be a bound", "clamp: { from: a, to: n }", ABC, "clamp-bounds",
            "at least one of min and max"),
    refused("clamp", "the bounds must be in order", "clamp: { from: a, to: n, min: 2, max: 1 }", ABC, "clamp-bounds",
            "min 2 is greater than max 1"),
    refused("clamp", "a bound that is given is a number", "clamp: { from: a, to: n, min: ~, max: 1 }", ABC,
            "value-type", "expected a number"),
    refused("clamp", "the destination must be new", "clamp: { from: a, to: b, max: 1 }", ABC, "dest-exists", "'b'"),
    accepted("clamp_", "in place, on a slice", "clamp_: { target: 'a::[0]', min: -3 }", ABC,
             {"a": np.concatenate([A[:1].clip(-3), A[1:]])}),
    refused("clamp_", "there must be a bound", "clamp_: { target: a }", ABC, "clamp-bounds",
            "at least one of min and max"),
    refused("clamp_", "something must match", "clamp_: { target: none, max: 1 }", ABC, "no-match", "'none'"),
)  # fmt: skip

TO = {"float16": F16, "bfloat16": BF16, "float32": F32, "float64": F64, "uint8": np.uint8, "int8": np.int8,
      "int16": np.int16, "int32": np.int32, "int64": np.int64, "bool": bool}  # fmt: skip
SPELLINGS = {"half": F16, "fp16": F16, "bf16": BF16, "float": F32, "fp32": F32, "double": F64, "fp64": F64,
             "short": np.int16, "int": np.int32, "long": np.int64, "' BFloat16 '": BF16}  # fmt: skip
SMALL = {"x": np.array([[-2.75, 0.0, 0.1], [3.5, 100.25, -0.0]], F32)}
COUNTS = {"x": np.array([0, 1, 300, -1], np.int32)}


def convert(x: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(dtype)


CAST = (
    *(accepted("cast", f"to {name}", f"cast: {{ from: x, to: n, dtype: {name} }}",
               SMALL if not name.startswith("uint") else {"x": abs(SMALL["x"])},
               {"n": convert(SMALL["x"] if not name.startswith("uint") else abs(SMALL["x"]), dtype)})
      for name, dtype in TO.items()),
    *(accepted("cast_", f"the dtype may be spelt {name}", f"cast_: {{ target: x, to: {name} }}", SMALL,
               {"x": SMALL["x"].astype(dtype)}) for name, dtype in SPELLINGS.items()),
    accepted("cast", "floats are rounded to nearest even, to infinity where they are too large",
             "cast: { from: x, to: n, dtype: float16 }", {"x": LONG}, {"n": convert(LONG, F16)}),
    accepted("cast", "to bool by being different from zero, NaN included", "cast: { from: x, to: n, dtype: bool }",
             {"x": ODD}, {"n": ODD != 0}),
    accepted("cast", "of a slice", "cast: { from: 'x::[0]', to: n, dtype: float16 }", SMALL,
             {"n": SMALL["x"][0].astype(F16)}),
    refused("cast", "the destination must be new", "cast: { from: x, to: x, dtype: float16 }", SMALL, "dest-exists",
            "'x' exists already"),
    refused("cast", "the dtype has no prefix", "cast: { from: x, to: n, dtype: torch.float16 }", SMALL,
            "dtype-unknown", r"unknown dtype 'torch\.float16'.*float16"),
    refused("cast", "the key is `dtype`, `to` is the name", "cast: { from: x, to: float16 }", SMALL, "key-missing",
            "missing key 'dtype'"),
    accepted("cast_", "every match takes the dtype under its own name", "cast_: { target: '.*', to: bfloat16 }", ABC,
             {k: x.astype(BF16) for k, x in ABC.items()}),
    refused("cast_", "the target takes no slice", "cast_: { target: 'x::[0]', to: float16 }", SMALL,
            "slice-not-allowed", "a slice is not allowed here"),
    refused("cast_", "the dtype must be known", "cast_: { target: x, to: float12 }", SMALL, "dtype-unknown",
            "unknown dtype 'float12'"),
)  # fmt: skip

ROWS = (*ADD, *MATMUL, *SCALE, *CLAMP, *CAST)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_arithmetic(row: Row, here: Path):
    check(row)
