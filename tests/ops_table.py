"""Every op in one row: a small call, what numpy says comes out, and a call that it must refuse.

Each row runs under every property of `tests/ops/test_table.py`. A new op needs a row here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.checkpoints import counting, normal

Tensors = dict[str, np.ndarray]
Changes = Mapping[str, np.ndarray | None]


class Refused(NamedTuple):
    """A payload that must be refused: the diagnostic's code and text (a regex), on the row's tensors and more."""

    payload: Any
    code: str
    match: str
    more: Mapping[str, np.ndarray] = {}


class Row(NamedTuple):
    """A step on tensors, and what changes: new values by name, None for what is gone.

    - `within`: absolute tolerance; 0 means bit for bit.
    - `dtypes`: the kinds of dtypes for which the call holds as well, tensors cast; the others must be refused.
    - `said`: a regex for what the step prints.
    - `before`: steps that prepare the state.
    """

    op: str
    payload: Any
    tensors: Tensors
    changes: Callable[[Tensors], Changes]
    refused: tuple[Refused, ...]
    within: float = 0.0
    dtypes: frozenset[str] = frozenset()
    said: str = ""
    before: tuple[Any, ...] = ()
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}{'-' if self.label else ''}{self.label}"


NUMBERS = frozenset({"float", "int", "uint", "complex"})
ANY = NUMBERS | {"bool"}

MISSING = Refused({"from": "none", "to": "new"}, "no-match", "no tensor matches 'none'")
W = {"w": counting((4, 6)) - 7}
PAIR = {"a": counting((4, 6)) - 7, "b": 5 - counting((4, 6)), "c": np.zeros((4, 6), np.float32)}
SHAPES = {"v": np.zeros((6, 4), np.float32)}
HALVES = {"h": np.zeros((4, 6), np.float16)}


def wide(x: np.ndarray) -> np.ndarray:
    """In the dtype in which plans compute: small floats in float32."""
    small = x.dtype.kind not in "biuc" and x.dtype.itemsize < 4
    return x.astype(np.float32) if small else x


def computed(fn: Callable[..., np.ndarray], x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """`fn` in the wide dtype, rounded once."""
    with np.errstate(all="ignore"):
        return fn(wide(x), *map(wide, others)).astype(x.dtype)


def scaled(x: np.ndarray, by: float) -> np.ndarray:
    if x.dtype.kind in "iu":
        return (x.astype(np.float64) * by).astype(x.dtype)
    w = wide(x)
    return computed(
        lambda y: y * np.asarray(by).astype(np.float64 if w.dtype.name in ("float64", "complex128") else np.float32), x
    )


def real(x: np.ndarray) -> np.ndarray:
    return np.real(x) if x.dtype.kind == "c" else x


def clipped(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """numpy's clip in float64: exact for the small whole numbers of a row."""
    if x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        low, high = max(low, info.min), min(high, info.max)
    return np.clip(x.astype(np.float64), low, high).astype(x.dtype)


def _three(op: str, fn: Callable[..., np.ndarray], dtypes: frozenset[str]) -> Row:
    call = {"from_a": "a", "from_b": "b", "to": "c"}
    return Row(
        op,
        call,
        PAIR,
        lambda t: {"c": computed(fn, t["a"], t["b"])},
        (
            Refused(call | {"from_a": "none"}, "no-match", "no tensor matches 'none'"),
            Refused(call | {"from_b": "v"}, "shapes-differ", r"shapes differ: f32\[4,6\] and f32\[6,4\]", SHAPES),
            Refused(call | {"from_b": "h"}, "dtypes-differ", r"dtypes differ: f32\[4,6\] and f16\[4,6\]", HALVES),
            Refused(call | {"to": "v"}, "dest-differs", r"is f32\[6,4\], but the result is f32\[4,6\]", SHAPES),
            Refused(call | {"to": "none"}, "tensor-missing", "'none'"),
        ),
        dtypes=dtypes,
    )


def _onto(op: str, fn: Callable[..., np.ndarray], dtypes: frozenset[str]) -> Row:
    call = {"from": "a", "to": "b"}
    return Row(
        op,
        call,
        {k: PAIR[k] for k in "ab"},
        lambda t: {"b": computed(fn, t["b"], t["a"])},
        (
            Refused(call | {"from": "none"}, "no-match", "no tensor matches 'none'"),
            Refused(call | {"to": "none"}, "tensor-missing", "'none'"),
            Refused(call | {"to": "v"}, "shapes-differ|dest-differs", r"f32\[6,4\]", SHAPES),
            Refused(call | {"to": "h"}, "dtypes-differ|dest-differs", r"f16\[4,6\]", HALVES),
        ),
        dtypes=dtypes,
    )


def _low_rank(x: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).astype(x.dtype)


def _factors(x: np.ndarray, rank: int) -> Changes:
    """The factors by numpy, each column of `b` with its largest entry positive."""
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    sign = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    u, v, root = u * sign, v * sign[:, None], np.sqrt(s[:rank])
    return {"w": None, "A": (root[:, None] * v[:rank]).astype(x.dtype), "B": (u[:, :rank] * root).astype(x.dtype)}


ROWS: tuple[Row, ...] = (
    Row("copy", {"from": "w", "to": "new"}, W, lambda t: {"new": t["w"]},
        (MISSING, Refused({"from": "w", "to": "w"}, "dest-exists", "'w' exists already")), dtypes=ANY),
    Row("move", {"from": "w", "to": "new"}, W | {"x": counting((8,))}, lambda t: {"w": None, "new": t["w"]},
        (MISSING, Refused({"from": "w", "to": "x"}, "dest-exists", "'x' exists already"),
         Refused({"from": "w::[0]", "to": "new"}, "slice-not-allowed", "a slice is not allowed here")), dtypes=ANY),
    Row("delete", {"target": "w"}, W | {"x": counting((8,))}, lambda t: {"w": None},
        (Refused({"target": "none"}, "no-match", "no tensor matches 'none'"),), dtypes=ANY),
    Row("assign", {"from": "a", "to": "b"}, {k: PAIR[k] for k in "ab"}, lambda t: {"b": t["a"]},
        (Refused({"from": "a", "to": "none"}, "tensor-missing", "'none'"),
         Refused({"from": "a", "to": "v"}, "dest-differs", r"the destination is f32\[6,4\]", SHAPES),
         Refused({"from": "a", "to": "h"}, "dest-differs", r"the destination is f16\[4,6\]", HALVES)), dtypes=ANY),
    _three("add", np.add, ANY),
    _three("subtract", np.subtract, NUMBERS),
    _three("multiply", np.multiply, ANY),
    _onto("add_", np.add, ANY),
    _onto("subtract_", np.subtract, NUMBERS),
    Row("matmul", {"from_a": "a", "from_b": "b", "to": "new"}, {"a": counting((3, 4)), "b": counting((4, 2))},
        lambda t: {"new": computed(np.matmul, t["a"], t["b"])},
        (Refused({"from_a": "a", "from_b": "a", "to": "new"}, "shapes-differ", "4 against 3"),
         Refused({"from_a": "a", "from_b": "b", "to": "a"}, "dest-exists", "'a' exists already"),
         Refused({"from_a": "a", "from_b": "s", "to": "new"}, "shapes-differ", "at least one axis",
                 {"s": np.ones((), np.float32)}),
         Refused({"from_a": "a", "from_b": "h", "to": "new"}, "dtypes-differ", "dtypes differ",
                 {"h": np.zeros((4, 2), np.float16)})), dtypes=NUMBERS),
    Row("scale", {"from": "w", "to": "new", "by": 3}, W, lambda t: {"new": scaled(t["w"], 3)},
        (Refused({"from": "w", "to": "new", "by": "much"}, "value-type", "expected a number, got .*'much'"),
         Refused({"from": "w", "to": "new"}, "key-missing", "by"),
         Refused({"from": "m", "to": "new", "by": 2}, "dtype-unsupported", "booleans", {"m": np.ones(3, bool)})),
        dtypes=NUMBERS),
    Row("scale_", {"target": "w", "by": 2}, W, lambda t: {"w": scaled(t["w"], 2)},
        (Refused({"target": "w", "by": None}, "value-type", "by"),),
        dtypes=NUMBERS),
    Row("clamp", {"from": "w", "to": "new", "min": -3, "max": 4}, W, lambda t: {"new": clipped(t["w"], -3, 4)},
        (Refused({"from": "w", "to": "new"}, "clamp-bounds", "at least one of min and max"),
         Refused({"from": "w", "to": "new", "min": 2, "max": 1}, "clamp-bounds", "min 2 is greater than max 1"),
         Refused({"from": "i", "to": "new", "min": 0.5}, "inexact", "0.5 is not an integer", {"i": np.arange(3)}),
         Refused({"from": "z", "to": "new", "min": 0}, "dtype-unsupported", "no order",
                 {"z": np.ones(2, np.complex64)})),
        dtypes=frozenset({"float", "int", "uint"})),
    Row("clamp_", {"target": "w", "max": 4}, W, lambda t: {"w": clipped(t["w"], -np.inf, 4)},
        (Refused({"target": "w"}, "clamp-bounds", "at least one of min and max"),),
        dtypes=frozenset({"float", "int", "uint"})),
    Row("cast", {"from": "w", "to": "new", "dtype": "float16"}, W, lambda t: {"new": real(t["w"]).astype(np.float16)},
        (Refused({"from": "w", "to": "new", "dtype": "float17"}, "dtype-unknown", "unknown dtype 'float17'"),
         Refused({"from": "w", "to": "new", "dtype": "float4_e2m1fn"}, "dtype-unknown", "unknown dtype")),
        dtypes=ANY),
    Row("cast_", {"target": "w", "to": "int32"}, W, lambda t: {"w": real(t["w"]).astype(np.int32)},
        (Refused({"target": "w::[0]", "to": "int8"}, "slice-not-allowed", "a slice is not allowed here"),), dtypes=ANY),
    Row("reshape", {"from": "w", "to": "new", "shape": [3, -1]}, W, lambda t: {"new": t["w"].reshape(3, 8)},
        (Refused({"from": "w", "to": "new", "shape": [5, -1]}, "reshape-size", "24 elements"),
         Refused({"from": "w", "to": "new", "shape": [-1, -1]}, "reshape-shape", "at most one -1"),
         Refused({"from": "w", "to": "new", "shape": [0, 24]}, "reshape-shape", "positive sizes")), dtypes=ANY),
    Row("reshape_", {"target": "w", "shape": [24]}, W, lambda t: {"w": t["w"].reshape(24)},
        (Refused({"target": "w", "shape": []}, "value-type", "shape"),), dtypes=ANY),
    Row("permute", {"from": "w", "to": "new", "order": [1, 0]}, W, lambda t: {"new": t["w"].T},
        (Refused({"from": "w", "to": "new", "order": [0, 0]}, "permute-order", "not a permutation"),
         Refused({"from": "w", "to": "new", "order": [0, -1]}, "permute-order", "not a permutation")), dtypes=ANY),
    Row("concat", {"from": ["a", "b"], "to": "new", "dim": -1}, {"a": counting((2, 4)), "b": counting((2, 8))},
        lambda t: {"new": np.concatenate([t["a"], t["b"]], 1)},
        (Refused({"from": ["a"], "to": "new"}, "value-type", "from"),
         Refused({"from": ["a", "b"], "to": "new"}, "shapes-differ", "cannot be joined along axis 0"),
         Refused({"from": ["a", "h"], "to": "new"}, "dtypes-differ", "dtypes differ", {"h": np.ones((2, 4), np.int8)}),
         Refused({"from": ["a", "."], "to": "new"}, "many-matches", "exactly one"),
         Refused({"from": ["a", "a"], "to": "new", "dim": 2}, "axis-range", "out of range")), dtypes=ANY),
    Row("split", {"from": "w", "to": ["p", "q"], "sizes": [1, 5], "dim": 1}, W,
        lambda t: {"p": t["w"][:, :1], "q": t["w"][:, 1:]},
        (Refused({"from": "w", "to": ["p", "q"], "sizes": [1, 2]}, "split-sizes", "add up to 3"),
         Refused({"from": "w", "to": ["p", "q"], "sizes": [1, 2, 1]}, "split-sizes", "2 names.* but 3 sizes"),
         Refused({"from": "w", "to": ["p", "w"], "sizes": [1, 3]}, "dest-exists", "'w' exists already")), dtypes=ANY),
    Row("fill", {"from": "w", "to": "new", "mode": "constant", "value": 1}, W,
        lambda t: {"new": np.ones_like(t["w"])},
        (Refused({"from": "w", "to": "new", "mode": "constant"}, "key-missing", "value"),
         Refused({"from": "w", "to": "new", "mode": "sparkle"}, "value-type", "sparkle"),
         Refused({"from": "w", "to": "new", "mode": "tensor", "values": [[1], [2, 3]]}, "fill-values", "ragged"),
         Refused({"from": "w", "to": "new", "mode": "tensor", "values": [1, 2]}, "fill-shape", "cannot be repeated"),
         Refused({"from": "u", "to": "new", "mode": "constant", "value": 300}, "fill-range", "does not fit uint8",
                 {"u": np.ones(2, np.uint8)}),
         Refused({"from": "u", "to": "new", "mode": "rand"}, "dtype-unsupported", "floating",
                 {"u": np.ones(2, np.uint8)}),
         Refused({"from": "w", "to": "new", "mode": "rand", "low": 1}, "rand-range", "not below")), dtypes=ANY),
    Row("fill", {"from": "w", "to": "new", "mode": "tensor", "values": [[1], [2], [3], [4]]}, W,
        lambda t: {"new": np.broadcast_to(np.array([[1], [2], [3], [4]]).astype(t["w"].dtype), (4, 6))}, (),
        dtypes=ANY, label="tensor"),
    Row("fill_", {"target": "w", "mode": "constant", "value": 2}, W, lambda t: {"w": np.full_like(t["w"], 2)},
        (Refused({"target": "w", "mode": "rand", "distribution": "normal", "std": 0}, "rand-range", "std"),),
        dtypes=ANY),
    Row("zeroes", {"target": "new", "shape": [2, 3]}, W, lambda t: {"new": np.zeros((2, 3), np.float32)},
        (Refused({"target": "w", "shape": [2]}, "dest-exists", "'w' exists already"),
         Refused({"target": "new", "shape": [0]}, "value-type", "shape"))),
    Row("ones", {"target": "new", "shape": [3]}, W, lambda t: {"new": np.ones(3, np.float32)},
        (Refused({"target": "new", "shape": []}, "value-type", "shape"),)),
    Row("rand", {"target": "new", "shape": [5], "low": 2, "high": 2.0000002, "seed": 3}, W,
        lambda t: {"new": np.full(5, 2, np.float32)},
        (Refused({"target": "new", "shape": [3], "low": 1, "high": 1}, "rand-range", "not below"),
         Refused({"target": "new", "shape": [3], "seed": "x"}, "value-type", "seed")), within=1e-6),
    Row("phlora", {"target": "w", "target_a": "A", "target_b": "B", "rank": 2}, {"w": normal((5, 4))},
        lambda t: _factors(t["w"], 2),
        (Refused({"target": "w", "target_a": "A", "target_b": "A", "rank": 2}, "names-collide", "both factors"),
         Refused({"target": "w", "target_a": "A", "target_b": "B", "rank": 0}, "value-type", "positive integer"),
         Refused({"target": "v", "target_a": "A", "target_b": "B", "rank": 1}, "not-a-matrix",
                 r"(matrix|matrices) with elements", {"v": normal((3,))}),
         Refused({"target": "i", "target_a": "A", "target_b": "B", "rank": 1}, "dtype-unsupported", "floating-point",
                 {"i": np.ones((2, 2), np.int32)}),
         Refused({"target": "w", "target_a": "A", "target_b": "x", "rank": 1}, "dest-exists", "'x' exists already",
                 {"x": normal((1,))})), within=2e-6),
    Row("phlora_", {"target": "w", "rank": 1}, {"w": normal((5, 4))}, lambda t: {"w": _low_rank(t["w"], 1)},
        (Refused({"target": "w", "rank": 2.5}, "value-type", "positive integer"),), within=2e-6),
    Row("assert", {"exists": "w"}, W, lambda t: {},
        (Refused({"exists": "none"}, "assert-failed", "no tensor matches 'model::none'"),
         Refused({"wishes": "w"}, "assert-unknown|key-unknown|value", "wishes"))),
    Row("dump", {"target": "w", "verbosity": "stat"}, W, lambda t: {},
        (Refused({"target": "none"}, "no-match", "no tensor matches"),
         Refused({"target": "w", "format": "round"}, "value-type", "round")), said=r"w  shape=\[4, 6\] min=-7"),
    Row("diff", {"left": "a", "right": "b"}, {k: PAIR[k] for k in "ab"}, lambda t: {},
        (Refused({"left": "a"}, "diff-keys", "takes the keys left and right"),), said=r"missing in .*:\n"),
    Row("prefixes", {"mode": "add", "alias": "work"}, W, lambda t: {},
        (Refused({"mode": "add"}, "prefixes-keys", "takes 'alias'"),
         Refused({"mode": "add", "alias": "model"}, "alias-exists", "exists already"),
         Refused({"mode": "remove", "alias": "none"}, "no-alias|alias-unknown|ref-alias", "none"),
         Refused({"mode": "rename", "from": "model", "to": "model"}, "alias-exists", "exists already"))),
    Row("load", {"path": "saved.safetensors", "alias": "again"}, W, lambda t: {},
        (Refused({"path": "none.safetensors", "alias": "x"}, "io-input", "none.safetensors"),
         Refused({"path": "saved.safetensors", "alias": "model"}, "alias-exists", "exists already")),
        before=({"save": "saved.safetensors"},)),
    Row("save", {"path": "saved.safetensors", "target": "w"}, W, lambda t: {},
        (Refused({"path": "saved.safetensors", "target": "none"}, "tensor-missing", "'none'"),
         Refused({"path": "saved.exe"}, "output-path", "saved.exe"))),
    Row("layout", {"name": "flax"}, W, lambda t: {"w": None, "params.w": t["w"]},
        (Refused({"name": "flax-gpt3"}, "layout-unknown", "unknown layout 'flax-gpt3'. Did you mean 'flax-gpt2'"),
         Refused({"name": "flax-gpt2"}, "layout-config", "'flax-gpt2' needs the config.json of the model"),
         Refused({"name": "flax-gpt2", "config": {"n_layer": 0}}, "layout-config", "does not fit this config.json"),
         Refused({"name": "flax", "inverse": True}, "layout-tensors", "are not those of the target side of flax"),
         Refused({"name": "flax", "options": {"scan": True}}, "layout-option", "flax has no option 'scan'")),
        dtypes=ANY),
    Row("exit", {}, W, lambda t: {}, (Refused({"now": 1}, "key-unknown", "now"),)),
)  # fmt: skip


class Asserted(NamedTuple):
    """An operator of `assert`: payloads that hold, payloads that do not (with why), payloads that are mistakes."""

    operator: str
    holds: tuple[Any, ...]
    fails: tuple[tuple[Any, str], ...]
    refused: tuple[tuple[Any, str], ...]


LOOKED_AT: Tensors = {
    "zero": np.zeros((2, 3), np.float32),
    "w": counting((2, 3)),
    "near": counting((2, 3)) + np.float32(1e-3),
    "nan": np.array([np.nan], np.float32),
    "none": np.zeros((0, 3), np.float32),
    "i": np.arange(3),
}

ASSERTED: tuple[Asserted, ...] = (
    Asserted("exists", ("w", "n.*"), (("absent", "no tensor matches 'model::absent'"),), (("(", "regex|pattern"),)),
    Asserted("count", ({"of": "n.*", "is": 3}, {"of": "absent", "is": 0}),
             (({"of": ".*", "is": 3}, "6 tensors match 'model::.*', not 3"),), (({"of": "w", "is": -1}, "is"),)),
    Asserted("shape", ({"of": "w", "is": [2, 3]}, {"of": "w::[0, 0]", "is": []}),
             (({"of": "w", "is": [3, 2]}, r"is \[2, 3\], not \[3, 2\]"), ({"of": "absent", "is": []}, "no tensor")),
             (({"of": "w"}, "is"),)),
    Asserted("dimensions", ({"of": "w", "is": 2}, {"of": ".*", "ge": 1, "lt": 3}),
             (({"of": "w::[0]", "is": 2}, "is 1, expected exactly 2"),),
             (({"of": "w"}, "at least one"), ({"of": "w", "gt": 3, "lt": 2}, "no number satisfies"))),
    Asserted("dtype", ({"of": "w", "is": "float"}, {"of": "i", "is": "long"}),
             (({"of": ".*", "is": "float32"}, "'i' is int64, not float32"),), (({"of": "w", "is": "f99"}, "f99"),)),
    Asserted("iszero", ("zero", {"of": "near::[0, 0]", "eps": 0.01}, "none", {"of": "w::[0, :1]"}),
             (("w", "'w' is not zero everywhere"), ("nan", "'nan' is not zero"), ({"of": "nan", "eps": 1}, "within 1")),
             (({"of": "w", "eps": -1}, "eps"),)),
    Asserted("equal",
             ({"left": "w", "right": "w"}, {"left": "w", "right": "near", "eps": 0.01},
              {"left": "none", "right": "none"}),
             (({"left": "w", "right": "near"}, "'w' differs in value"),
              ({"left": "nan", "right": "nan"}, "'nan' differs"),
              ({"left": "w", "right": "i"}, r"f32\[2,3\] on the left and i64\[3\]"),
              ({"left": "w", "right": "absent"}, "there is no 'absent'")),
             (({"left": "w", "right": "near", "eps": "x"}, "eps"),)),
    Asserted("identical",
             ({"left": "w", "right": "w"}, {"left": "nan", "right": "nan"}, {"left": "none", "right": "none"}),
             (({"left": "w", "right": "near"}, "'w' differs in its bytes"),
              ({"left": "w", "right": "i"}, r"f32\[2,3\] on the left and i64\[3\]"),
              ({"left": "absent", "right": "w"}, "no tensor matches")),
             (({"left": "w"}, "right"),)),
    Asserted("reads", ({"of": "w", "is": 0}, {"of": "w", "at_most": 1}), (({"of": "w", "gt": 0}, "is 0, expected"),),
             (({"of": "w", "ge": 1, "at_least": 2}, "given twice"), ({"of": "w"}, "at least one"))),
    Asserted("writes", ({"of": "w", "is": 1}, {"of": ".*", "le": 1}), (({"of": "w", "lt": 1}, "is 1, expected"),),
             (({"of": "w", "le": 1, "at_most": 2}, "given twice"),)),
    Asserted("all", ([{"exists": "w"}, {"iszero": "zero"}],),
             (([{"exists": "w"}, {"iszero": "w"}], "not zero"), ([{"exists": "absent"}, {"exists": "w"}], "absent")),
             (([], "all"),)),
    Asserted("any", ([{"exists": "absent"}, {"iszero": "zero"}],),
             (([{"exists": "absent"}, {"iszero": "w"}], "none of them holds: .*absent.*not zero"),), (([], "any"),)),
    Asserted("not", ({"exists": "absent"}, {"iszero": "w"}), (({"iszero": "zero"}, "assert.not: .* holds"),),
             (([{"exists": "w"}], "not"), ({"exists": "("}, "regex|pattern"))),
)  # fmt: skip
