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
BY = {"w1": counting((4, 6)) - 7, "w.by": np.full(8, 0.5, np.float32)}
SHAPES = {"v": np.zeros((6, 4), np.float32)}
HALVES = {"h": np.zeros((4, 6), np.float16)}


def wide(x: np.ndarray) -> np.ndarray:
    """In the dtype in which plans compute: small floats in float32."""
    small = x.dtype.kind not in "biuc" and x.dtype.itemsize < 4
    return x.astype(np.float32) if small else x


def computed(fn: Callable[..., np.ndarray], x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """`fn` in the wide dtype, rounded once. A bare exponent has no zero, but a least value."""
    with np.errstate(all="ignore"):
        made = fn(wide(x), *map(wide, others))
        if x.dtype.name == "float8_e8m0fnu":
            made = np.where(made == 0, np.float32(2.0**-127), made)
        return made.astype(x.dtype)


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


def _in_its_basis(t: Tensors) -> Changes:
    """U S and V^T of a product, with the signs that LAPACK gives."""
    (qa, ra), (qb, rb) = np.linalg.qr(t["a"]), np.linalg.qr(t["b"].swapaxes(-1, -2))
    u, s, vt = np.linalg.svd(ra @ rb.swapaxes(-1, -2))
    return {"a": qa @ (u * s[:, None, :]), "c": vt @ qb.swapaxes(-1, -2)}


def _low_rank(x: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).astype(x.dtype)


def _factors(x: np.ndarray, rank: int) -> Changes:
    """The factors by numpy, each column of `b` with its largest entry positive."""
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    sign = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    u, v, root = u * sign, v * sign[:, None], np.sqrt(s[:rank])
    return {"w": None, "A": (root[:, None] * v[:rank]).astype(x.dtype), "B": (u[:, :rank] * root).astype(x.dtype)}


LORA = {"w.lora_A.weight": normal((2, 6)), "w.lora_B.weight": normal((4, 2), seed=1)}
TWICE = (
    {"prefixes": {"mode": "add", "alias": "tuned"}},
    {"scale": {"from": "model::w.weight", "to": "tuned::w.weight", "by": 2}},
)
MOVED = (
    *TWICE,
    {"prefixes": {"mode": "add", "alias": "base"}},
    {"move": {"from": "model::(.*)", "to": r"base::\1"}},
)
"""The model under another alias, so that its own is free, and twice the model."""
APART = (
    {"prefixes": {"mode": "add", "alias": "adapter"}},
    {"move": {"from": r"model::(.*lora_.*)", "to": r"adapter::\1"}},
)


def _adapter(x: np.ndarray, rank: int) -> Changes:
    """What an adapter of a change has, by names of PEFT."""
    made = _factors(x, rank)
    return {f"base_model.model.w.lora_{x}.weight": made[x] for x in "AB"}


def _shrink(t: Tensors, rank: int) -> Changes:
    """The factors of the product of two, by numpy."""
    made = _factors(t["w.lora_B.weight"] @ t["w.lora_A.weight"], rank)
    return {f"w.lora_{x}.weight": made[x] for x in "AB"}


def _stacked_factors(t: Tensors) -> Changes:
    """The factors of each matrix, stacked as the matrices are."""
    lead, made = t["w"].shape[:-2], [_factors(x, 2) for x in t["w"].reshape(-1, *t["w"].shape[-2:])]
    stacked = {name: np.stack([np.asarray(one[name]) for one in made]) for name in "AB"}
    return {"w": None, **{name: x.reshape(*lead, *x.shape[1:]) for name, x in stacked.items()}}


def _formula(expr: str, x: str = "a", y: str = "b", **keys: Any) -> dict[str, Any]:
    """A payload of `compute` on two tensors."""
    return {"from": {"x": x, "y": y}, "expr": expr, **keys}


QUOTIENTS = {"a": counting((2, 4)) * 6 - 12, "b": np.array([[1, 2, 3, 1], [6, 3, 1, 2]], np.float32),
             "c": np.zeros((2, 4), np.float32)}  # fmt: skip
FLOATS = frozenset({"float", "complex"})
EXPERTS = {f"h.{i}.e.{e}.w": counting((2, 4)) + 8 * (2 * i + e) for i in range(2) for e in range(2)}
EACH_EXPERT = r"h\.(?P<i>\d+)\.e\.(?P<e>\d+)\.w"
PARTED = {"h.0.w": counting((8, 2)), "h.1.w": -counting((8, 2))}


def between(x: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
    """The formula in the next wider dtype, from the nearer end."""
    double = np.complex128 if x.dtype.kind == "c" else np.float32 if x.dtype.itemsize < 4 else np.float64
    a, b = x.astype(double), y.astype(double)
    with np.errstate(all="ignore"):
        return (a + (b - a).dtype.type(t) * (b - a) if t < 0.5 else b + (b - a).dtype.type(t - 1) * (b - a)).astype(
            x.dtype
        )


def summed(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else float).sum(1).astype(x.dtype)


def _of(op: str, made: np.ndarray | Callable[[Tensors], np.ndarray]) -> Callable[[Tensors], Changes]:
    """What a row changes that makes `new`, or whose op works on `w` in place."""
    return lambda t: {"w" if op.endswith("_") else "new": made(t) if callable(made) else made}


def tent(n: int, m: int) -> np.ndarray:
    """The weights [m, n] of bilinear interpolation of `n` entries to `m`, smoothed where there are fewer."""
    wider = max(n / m, 1.0)
    centres = (np.arange(m)[:, None] + 0.5) * n / m - 0.5
    weights = np.maximum(0, 1 - np.abs(centres - np.arange(n)) / wider)
    return weights / weights.sum(1, keepdims=True)


def _call(op: str, **keys: Any) -> dict[str, Any]:
    return ({"target": "w"} if op.endswith("_") else {"from": "w", "to": "new"}) | keys


def _spd(n: int) -> np.ndarray:
    x = normal((3 * n, n), np.float64, seed=3)
    return (x.T @ x).astype(np.float32)


FACT = {"w": normal((3, 4)), "k": normal((4,), seed=1), "v": normal((3,), seed=2), "c": _spd(4)}
FACTS = {"w": normal((3, 4)), "k": normal((2, 4), seed=1), "v": normal((2, 3), seed=2), "c": _spd(4)}
FACT_CALL = {"target": "w", "keys": "k", "values": "v", "covariance": "c"}


def _met(t: Tensors) -> Tensors:
    """The least change, in the coordinates in which the covariance is the identity, that meets every fact."""
    w, k, v = (np.atleast_2d(t[n]).astype(np.float64) for n in ("w", "k", "v"))
    factor = np.linalg.cholesky(t["c"].astype(np.float64))
    change = (v - k @ w.T).T @ np.linalg.pinv(np.linalg.solve(factor, k.T)) @ np.linalg.inv(factor)
    return {"w": (w + change).astype(t["w"].dtype)}


def _squares(t: Tensors) -> Tensors:
    """Facts and the covariance as rows of one problem of least squares."""
    w, k, v = (t[n].astype(np.float64) for n in ("w", "k", "v"))
    rows = np.concatenate([k, np.linalg.cholesky(t["c"].astype(np.float64)).T])
    wanted = np.concatenate([v - k @ w.T, np.zeros((w.shape[1], w.shape[0]))])
    return {"w": (w + np.linalg.lstsq(rows, wanted, rcond=None)[0].T).astype(t["w"].dtype)}


def _not_facts(op: str) -> tuple[Refused, ...]:
    call = FACT_CALL
    return (
        Refused(call | {"target": "none"}, "no-match", "no tensor matches 'none'"),
        Refused(call | {"keys": "v"}, "shapes-differ", r"keys are f32\[(2,)?3\], not"),
        Refused(call | {"values": "k"}, "shapes-differ", r"values are f32\[(2,)?4\], not"),
        Refused(call | {"covariance": "w"}, "shapes-differ", r"covariances are f32\[3,4\], not \[4,4\]"),
        Refused(call | {"target": "b"}, "not-a-matrix", "edited in a matrix by vectors", {"b": np.ones(3, np.float32)}),
        Refused(call | {"target": "i"}, "dtype-unsupported", "computes on floats", {"i": np.ones((3, 4), np.int32)}),
    )  # fmt: skip


def _lowest_of_rows(x: np.ndarray, count: int) -> np.ndarray:
    return np.where(np.abs(x).argsort(1, kind="stable").argsort(1) < count, 0, x).astype(x.dtype)


UNITS = {"up": normal((4, 3)), "down": normal((3, 4), seed=1)}


CODES = {"w": (counting((4, 6)) * 5 - 60).astype(np.int8), "w_scale": counting((4, 1)) / 8 + 1}


def _row_scales(x: np.ndarray) -> np.ndarray:
    """What makes the largest entry of each row 127."""
    return np.abs(x).max(1, keepdims=True) / np.float32(127)


def _awq_words(t: Tensors) -> Changes:
    """A matrix [8, 8] of entries from 0 on in words: its zeros are 0, and its scales the largest entries over 15."""
    scales = (t["w.weight"].max(1) / np.float32(15)).astype(np.float16)
    codes = np.clip(np.rint(t["w.weight"].T / scales.astype(np.float32)), 0, 15).astype(np.uint32)
    words = sum(codes[:, [column]] << np.uint32(4 * at) for at, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
    return {"w.weight": None, "w.qweight": np.asarray(words).view(np.int32), "w.qzeros": np.zeros((1, 1), np.int32),
            "w.scales": scales[None]}  # fmt: skip


ROWS: tuple[Row, ...] = (
    Row("copy", {"from": "w", "to": "new"}, W, lambda t: {"new": t["w"]},
        (MISSING, Refused({"from": "w", "to": "w"}, "dest-exists", "'w' exists already")), dtypes=ANY),
    Row("copy", {"from": "w", "to": "new_${i}", "over": {"i": ["2:4", "last"]}}, W,
        lambda t: {"new_2": t["w"], "new_3": t["w"], "new_last": t["w"]},
        (Refused({"from": "w", "to": "new", "over": {"i": [1, 2]}}, "over-template", "all 2 copies of 'w'"),
         Refused({"from": "w", "to": "new_${i}", "over": {"i": [1, 1]}}, "value-type", "'1' is there twice")),
        dtypes=ANY, label="many"),
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
    Row("rome_", FACT_CALL, FACT, _met,
        (*_not_facts("rome_"), Refused(FACT_CALL | {"keys": "two", "values": "both"}, "shapes-differ", "are 2 keys",
                                       {"two": np.ones((2, 4), np.float32), "both": np.ones((2, 3), np.float32)})),
        within=2e-6),
    Row("emmet_", FACT_CALL, FACTS, _met, _not_facts("emmet_"), within=2e-6),
    Row("memit_", FACT_CALL, FACTS, _squares, _not_facts("memit_"), within=2e-6),
    Row("ablate_", {"target": "w", "direction": "r", "dim": 1}, {"w": normal((3, 4)), "r": normal((4,), seed=1)},
        lambda t: {"w": t["w"] - np.outer(t["w"] @ t["r"], t["r"]) / (t["r"] @ t["r"])},
        (Refused({"target": "none", "direction": "r"}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "w", "direction": "r"}, "shapes-differ", "has 4 entries, not those of axis 0"),
         Refused({"target": "w", "direction": "r", "dim": 2}, "axis-range", "out of range"),
         Refused({"target": "w", "direction": "t", "dim": 1}, "not-a-matrix", "directions are vectors",
                 {"t": np.ones((5, 4), np.float32)}),
         Refused({"target": "i", "direction": "r", "dim": 1}, "dtype-unsupported", "removed from floats",
                 {"i": np.ones((3, 4), np.int32)})), within=2e-6),
    Row("consolidate_", {"target": "w", "old": "o", "fisher": "f", "strength": 2},
        {"w": normal((3, 4)), "o": normal((3, 4), seed=1), "f": np.abs(normal((3, 4), seed=2))},
        lambda t: {"w": (t["w"] + 2 * t["f"] * t["o"]) / (1 + 2 * t["f"])},
        (Refused({"target": "none", "old": "o", "fisher": "f"}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "w", "old": "o", "fisher": "v"}, "shapes-differ", r"Fisher values are f32\[3\], not",
                 {"v": np.ones(3, np.float32)})), within=1e-6),
    Row("wanda_", {"target": "w", "norms": "x", "ratio": 0.5}, {"w": normal((3, 4)), "x": np.ones(4, np.float32)},
        lambda t: {"w": _lowest_of_rows(t["w"], 2)},
        (Refused({"target": "none", "norms": "x", "ratio": 0.5}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "w", "norms": "x"}, "key-missing", "either `ratio` or `pattern`"),
         Refused({"target": "w", "norms": "x", "pattern": "4:4"}, "value-type", "no pattern of sparsity"),
         Refused({"target": "w", "norms": "x", "pattern": "1:3"}, "shapes-differ", "no multiple of 3"),
         Refused({"target": "x", "norms": "x", "ratio": 0.5}, "not-a-matrix", "pruning needs a matrix"),
         Refused({"target": "w", "norms": "v", "ratio": 0.5}, "shapes-differ", r"norms are f32\[3\], not \[4\]",
                 {"v": np.ones(3, np.float32)}))),
    Row("sparsegpt_", {"target": "w", "hessian": "c", "pattern": "2:4", "damping": 0},
        {"w": normal((3, 4)), "c": np.eye(4, dtype=np.float32)}, lambda t: {"w": _lowest_of_rows(t["w"], 2)},
        (Refused({"target": "none", "hessian": "c", "ratio": 0.5}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "w", "hessian": "w", "ratio": 0.5}, "shapes-differ", r"Hessians are f32\[3,4\], not"))),
    Row("rebasin", {"target": "up", "like": "other", "others": {"down": 1}}, UNITS,
        lambda t: {"up": t["up"][[2, 0, 3, 1]], "down": t["down"][:, [2, 0, 3, 1]]},
        (Refused({"target": "none", "like": "other"}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "up", "like": "absent"}, "alias-unknown", "unknown alias 'absent'")),
        before=({"prefixes": {"mode": "add", "alias": "other"}},
                {"take": {"from": "up", "to": "other::up", "indices": [2, 0, 3, 1], "dim": 0}},
                {"take": {"from": "down", "to": "other::down", "indices": [2, 0, 3, 1], "dim": 1}})),
    Row("dequantize", {"target": "w", "to": "float32"}, CODES,
        lambda t: {"w": t["w"] * t["w_scale"].astype(np.float32), "w_scale": None},
        (Refused({"target": "none", "to": "float32"}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "w_scale", "to": "float32"}, "codes-unknown", "'w_scale' matches is quantized"),
         Refused({"target": "w", "to": "int32"}, "dtype-unsupported", "does not hold the values"),
         Refused({"target": "x", "to": "float32"}, "codes-unknown", r"cannot be cut into blocks with scales f32\[3,2\]",
                 {"x": np.ones((4, 6), np.int8), "x_scale": np.ones((3, 2), np.float32)}))),
    Row("quantize", {"target": r"w\.weight", "to": "awq", "group": 8},
        {"w.weight": counting((8, 8))}, _awq_words,
        (Refused({"target": "w", "to": "awq"}, "no-match", "no tensor matches 'w'"),
         Refused({"target": ".*", "to": "gptq"}, "codes-unknown", "inputs in whole groups of 128"),
         Refused({"target": "v", "to": "gptq", "group": 8}, "codes-unknown", "is not called `.weight`",
                 {"v": np.ones((8, 8), np.float32)})),
        label="words"),
    Row("quantize", {"target": "w", "to": "int8"}, {"w": counting((4, 6)) - 7.5},
        lambda t: {"w": np.round(t["w"] / _row_scales(t["w"])).astype(np.int8),
                   "w_scale": _row_scales(t["w"])},
        (Refused({"target": "none", "to": "int8"}, "no-match", "no tensor matches 'none'"),
         Refused({"target": "w", "to": "int8", "per": "channel", "block": [2, 2]}, "codes-unknown", "not go together"),
         Refused({"target": "v", "to": "int8"}, "not-a-matrix", "only matrices are quantized",
                 {"v": np.ones(3, np.float32)}),
         Refused({"target": "i", "to": "int8"}, "dtype-unsupported", "only floats of 16 bits or more",
                 {"i": np.ones((3, 2), np.int32)}),
         Refused({"target": "w", "to": "mxfp4"}, "codes-unknown", "no multiple of 32"))),
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
    Row("scale", {"from": r"(w)\d", "to": "new", "by": r"model::\1.by::[3]"}, BY,
        lambda t: {"new": scaled(t["w1"], float(t["w.by"][3]))},
        (Refused({"from": "w1", "to": "new", "by": "model::w1"}, "number-tensor", r"one element, got f32\[4,6\]"),
         Refused({"from": "w1", "to": "new", "by": "model::none"}, "tensor-missing", "none"),
         Refused({"from": "i", "to": "new", "by": "model::w.by::[3]"}, "dtype-unsupported", "is for floats, got i64",
                 {"i": np.arange(3)})),
        dtypes=frozenset({"float"}), label="by"),
    Row("clamp_", {"target": "w1", "min": -2, "max": "model::w.by::[3]"}, BY,
        lambda t: {"w1": clipped(t["w1"], -2, float(t["w.by"][3]))},
        (Refused({"target": "w1", "max": "model::w1"}, "number-tensor", "one element"),),
        dtypes=frozenset({"float"}), label="by"),
    Row("lerp_", {"from": "w1", "to": "w2", "t": "model::w.by::[3]"}, BY | {"w2": 5 - counting((4, 6))},
        lambda t: {"w2": between(t["w2"], t["w1"], float(t["w.by"][3]))},
        (Refused({"from": "w1", "to": "v", "t": "model::w.by::[3]"}, "shapes-differ|dest-differs", r"f32\[6,4\]",
                 SHAPES),),
        dtypes=frozenset({"float"}), label="by"),
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
    Row("fill", {"from": "w", "to": "new", "mode": "tensor", "values": [[1], [1], [1], [1]]}, W,
        lambda t: {"new": np.broadcast_to(np.array([[1], [1], [1], [1]]).astype(t["w"].dtype), (4, 6))}, (),
        dtypes=ANY, label="tensor"),
    Row("fill_", {"target": "w", "mode": "constant", "value": 1}, W, lambda t: {"w": np.ones_like(t["w"])},
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
    Row("phlora", {"target": "w", "target_a": "A", "target_b": "B", "rank": 2, "stacked": True},
        {"w": normal((2, 3, 5, 4))}, _stacked_factors,
        (Refused({"target": "m", "target_a": "C", "target_b": "D", "rank": 2, "stacked": True}, "not-a-matrix",
                 r"'m' is f32\[5,4\]: stacked matrices have at least three axes", {"m": normal((5, 4))}),),
        within=2e-6, label="stacked"),
    Row("phlora_", {"target": "w", "rank": 1, "stacked": True}, {"w": normal((3, 5, 4))},
        lambda t: {"w": np.stack([_low_rank(x, 1) for x in t["w"]])},
        (Refused({"target": "w", "rank": 1}, "not-a-matrix", "with elements"),), within=2e-6, label="stacked"),
    Row("phlora_", {"target": "w", "rank": 1}, {"w": normal((5, 4))}, lambda t: {"w": _low_rank(t["w"], 1)},
        (Refused({"target": "w", "rank": 2.5}, "value-type", "positive integer"),), within=2e-6),
    Row("refactor", {"left": "a", "right": "b", "to_left": "a", "to_right": "c", "values": "left"},
        {"a": normal((2, 5, 3)), "b": normal((2, 3, 4))}, _in_its_basis,
        (Refused({"left": "a", "right": "a", "to_left": "c", "to_right": "d"}, "shapes-differ", "cannot be multiplied"),
         Refused({"left": "a", "right": "v", "to_left": "c", "to_right": "d"}, "shapes-differ", "two stacks of as many",
                 {"v": normal((3, 4))}),
         Refused({"left": "a", "right": "v", "to_left": "c", "to_right": "d"}, "dtypes-differ", "dtypes differ",
                 {"v": normal((2, 3, 4)).astype(np.float16)}),
         Refused({"left": "i", "right": "i", "to_left": "c", "to_right": "d"}, "dtype-unsupported", "needs floating",
                 {"i": np.ones((2, 2), np.int32)})), within=2e-6),
    Row("assert", {"exists": "w"}, W, lambda t: {},
        (Refused({"exists": "none"}, "assert-failed", "no tensor matches 'none' in 'model'"),
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
    Row("config", {"patch": {"num_hidden_layers": 9}}, W, lambda t: {},
        (Refused({}, "key-missing", "patch, remove and from"),
         Refused({"patch": {"a": 1}, "alias": "n"}, "alias-unknown", "'n'"))),
    Row("exit", {}, W, lambda t: {}, (Refused({"now": 1}, "key-unknown", "now"),)),
    Row("set", {"verbose": "T"}, W, lambda t: {}, (Refused({"preview": 1}, "value-type", "expected true or false"),)),
    Row("set", {}, W, lambda t: {}, (Refused({"quiet": True}, "key-unknown", "quiet"),),
        said="dry-run: false\npreview: false\nverbose: false", label="nothing"),
    Row("help", {"assert": "equal"}, W, lambda t: {},
        (Refused("copi", "op-unknown", "no op 'copi'. Did you mean 'copy'"),
         Refused({"assert": "equals"}, "op-unknown", "Did you mean 'assert.equal'")), said=r"assert\.equal\n"),
    Row("lora_extract", {"base": "base", "tuned": "tuned", "to": "model", "rank": 2},
        {"w.weight": counting((4, 6)) - 7}, lambda t: {**_adapter(t["w.weight"], 2), "w.weight": None},
        (Refused({"base": "base", "tuned": "tuned", "to": "base", "rank": 2}, "alias-exists", "'base'"),
         Refused({"base": "base", "tuned": "tuned", "to": "a"}, "key-missing", "give one, not none"),
         Refused({"base": "base", "tuned": "tuned", "to": "a", "rank": 1, "budget": 9}, "key-missing", "not several"),
         Refused({"base": "base", "tuned": "tuned", "to": "a", "energy": 2}, "value-type", "at most 1, got 2"),
         Refused({"base": "base", "tuned": "tuned", "to": "a", "rank": 0}, "value-type", "rank"),
         Refused({"base": "base", "tuned": "none", "to": "a", "rank": 1}, "alias-unknown", "'none'"),
         Refused({"base": "base", "tuned": "tuned", "to": "a", "rank": 1}, "unmatched", "'v' is in 'base'",
                 {"v": normal((3,))})),
        within=1e-5, before=MOVED),
    Row("lora_merge", {"base": "model", "adapters": {"adapter": 0.5}, "config": {"lora_alpha": 4}},
        {"w.weight": counting((4, 6)) - 7, **LORA},
        lambda t: {"w.weight": t["w.weight"] + t["w.lora_B.weight"] @ t["w.lora_A.weight"], **dict.fromkeys(LORA)},
        (Refused({"base": "model", "adapters": ["none"]}, "alias-unknown", "'none'"),
         Refused({"base": "model", "adapters": []}, "value-type", "expected an alias"),
         Refused({"base": "model", "adapters": {"adapter": "much"}}, "value-type", "expected an alias"),
         Refused({"base": "model", "adapters": "model"}, "adapter-merge", "it is not known how they change a model"),
         Refused({"base": "model", "adapters": "adapter", "to": "adapter"}, "alias-exists", "'adapter' already")),
        within=1e-5, before=APART),
    Row("lora_resize", {"adapter": "model", "rank": 1},
        LORA, lambda t: _shrink(t, 1),
        (Refused({"adapter": "none", "rank": 1}, "alias-unknown", "'none'"),
         Refused({"adapter": "model"}, "key-missing", "give one, not none"),
         Refused({"adapter": "model", "rank": 1, "to": "model"}, "adapter-merge", "it is not known", W)), within=1e-5),
    Row("merge", {"method": "linear", "models": {"model": 1, "other": 3}, "to": "model"}, {"w": counting((2, 3))},
        lambda t: {"w": t["w"] * np.float32(1.75)},
        (Refused({"method": "linear", "models": ["model"], "to": "model", "base": "model"}, "merge-models", "no base"),
         Refused({"method": "slurp", "models": ["model"], "to": "m"}, "value-type", "slurp"),
         Refused({"method": "slerp", "models": ["model"], "to": "model"}, "merge-models", "takes 2 models, got 1"),
         Refused({"method": "ties", "models": ["model"], "to": "model"}, "merge-models", "differ by from a base"),
         Refused({"method": "linear", "models": ["model", "none"], "to": "model"}, "alias-unknown", "'none'"),
         Refused({"method": "linear", "models": {"model": "x"}, "to": "m"}, "value-type", "got 'x' for 'model'"),
         Refused({"method": "linear", "models": ["model"], "to": "m", "parameters": {"t": 1}}, "merge-parameter",
                 "linear has no parameter 't'"),
         Refused({"method": "linear", "models": {"model": {"normalize": 1}}, "to": "model"}, "merge-parameter",
                 "a model of linear has no parameter 'normalize'"),
         Refused({"method": "linear", "models": ["model"]}, "key-missing", "to")),
        before=({"prefixes": {"mode": "add", "alias": "other"}},
                {"scale": {"from": "model::w", "to": "other::w", "by": 2}})),
    Row("execute", {"transforms": [{"copy": {"from": "w", "to": "v"}}]}, W, lambda t: {"v": t["w"]},
        (Refused({}, "execute-empty", "no step to execute"),
         Refused({"transforms": [{"execute": {}}]}, "execute-empty", "no step to execute"))),
    Row("compute", _formula("x + y", to="c"), PAIR, lambda t: {"c": computed(np.add, t["a"], t["b"])},
        (Refused(_formula("x + z"), "expression-name", "'z' is not among the names under `from` \\(x, y\\)"),
         Refused(_formula("x + "), "expression-syntax", r"'x \+' is not an expression"),
         Refused(_formula("x + y.sum()"), "expression-syntax", r"'\.sum' has no meaning in an expression"),
         Refused(_formula("x + summ(y)"), "expression-syntax", r"no function 'summ'\. Did you mean 'sum'\?"),
         Refused(_formula("x + sum(y, axes=0)"), "expression-syntax", "'sum' has no argument 'axes'"),
         Refused(_formula("max(x, y)"), "expression-syntax", "'max' takes 1 argument without a name, got 2"),
         Refused(_formula('x + "y"'), "expression-syntax", "cannot stand in an expression"),
         Refused(_formula("(lambda: x)() + y"), "expression-syntax", "'.*' cannot stand in an expression"),
         Refused(_formula("x + y + 9**9**9"), "expression-value", r"'9\*\*9\*\*9': exponents go up to 64"),
         Refused(_formula("x + y[4]"), "expression-value", "index 4 is out of range for axis 0 of size 4"),
         Refused(_formula("x @ y"), "expression-value", r"'x @ y' of f32\[4,6\] and f32\[4,6\].* 6 against 4"),
         Refused(_formula("x.T + y"), "expression-value", r"f32\[6,4\] and f32\[4,6\]: the shapes do not broadcast"),
         Refused(_formula("x[0] + y[0]"), "shapes-differ", r"is f32\[6\], and cannot take the place of f32\[4,6\]"),
         Refused(_formula("x + y", x="none"), "no-match", "no tensor matches 'none'"),
         Refused(_formula("x + y", y="none"), "tensor-missing", "'none'"),
         Refused(_formula("x * 0.5 + sum(y)", x="i"), "dtypes-differ", "would be stored as int32",
                 {"i": np.arange(3, dtype=np.int32)}),
         Refused(_formula("x + sum(y)", to="v::[0]"), "dest-differs", r"the slice is f32\[4\]", SHAPES),
         Refused({"from": "a", "expr": "a"}, "value-type", "a mapping of names to references, got the text 'a'"),
         Refused({"from": {"sum": "a"}, "expr": "sum"}, "expression-syntax", "'sum' is a function"),
         Refused({"from": {"x": "a"}, "expr": 3}, "value-type", "expected text"),
         Refused({"from": {"x": "a"}}, "key-missing", "expr")), dtypes=ANY),
    Row("compute", {"from": {"w": "w", "r": "r"}, "expr": "w - outer(r, mean(w, axis=0))"},
        {"w": counting((4, 6)), "r": counting((4,)) - 1},
        lambda t: {"w": t["w"] - np.outer(t["r"], t["w"].mean(0))}, (), label="in place"),
    Row("compute", {"from": {"w": "w"}, "to": "new", "expr": "sum(w > 2, axis=1)", "dtype": "float16"}, W,
        lambda t: {"new": (t["w"] > 2).sum(1).astype(np.float16)}, (), label="new"),
    _onto("multiply_", np.multiply, ANY),
    Row("divide", {"from_a": "a", "from_b": "b", "to": "c"}, QUOTIENTS,
        lambda t: {"c": computed(np.divide, t["a"], t["b"])},
        (Refused({"from_a": "a", "from_b": "b", "to": "none"}, "tensor-missing", "'none'"),
         Refused({"from_a": "a", "from_b": "m", "to": "c"}, "dtypes-differ", "dtypes differ",
                 {"m": np.ones((2, 4), bool)}),
         Refused({"from_a": "m", "from_b": "m", "to": "m"}, "dtype-unsupported", "booleans",
                 {"m": np.ones((2, 3), bool)})), dtypes=NUMBERS),
    Row("divide_", {"from": "b", "to": "a"}, {k: QUOTIENTS[k] for k in "ab"},
        lambda t: {"a": computed(np.divide, t["a"], t["b"])},
        (Refused({"from": "none", "to": "a"}, "no-match", "no tensor matches 'none'"),
         Refused({"from": "a", "to": "v"}, "shapes-differ|dest-differs", r"f32\[6,4\]", SHAPES)), dtypes=NUMBERS),
    Row("lerp", {"from_a": "a", "from_b": "b", "to": "c", "t": 0.25}, PAIR,
        lambda t: {"c": between(t["a"], t["b"], 0.25)},
        (Refused({"from_a": "a", "from_b": "b", "to": "c"}, "key-missing", "t"),
         Refused({"from_a": "a", "from_b": "b", "to": "c", "t": "half"}, "value-type", "expected a number"),
         Refused({"from_a": "a", "from_b": "b", "to": "none", "t": 0}, "tensor-missing", "'none'"),
         Refused({"from_a": "i", "from_b": "i", "to": "i", "t": 0}, "dtype-unsupported", "floating-point",
                 {"i": np.arange(3)})), dtypes=FLOATS),
    Row("lerp_", {"from": "a", "to": "b", "t": 0.75}, {k: PAIR[k] for k in "ab"},
        lambda t: {"b": between(t["b"], t["a"], 0.75)},
        (Refused({"from": "a", "to": "v", "t": 0}, "shapes-differ|dest-differs", r"f32\[6,4\]", SHAPES),),
        dtypes=FLOATS),
    Row("permute_", {"target": "w", "order": [1, 0]}, W, lambda t: {"w": t["w"].T},
        (Refused({"target": "w", "order": [0]}, "permute-order", "not a permutation"),), dtypes=ANY),
    *(Row(op, _call(op, axes=[0, -1]), {"w": counting((2, 4, 3))}, _of(op, lambda t: t["w"].swapaxes(0, 2)),
          (Refused(_call(op, axes=[0, -3]), "axis-range", r"axes \[0, -3\] of .* are the same"),
           Refused(_call(op, axes=[0, 3]), "axis-range", "axe 3|axis 3|axes 3"),
           Refused(_call(op, axes=[1]), "value-type", "a list of at least 2, got 1"),
           Refused(_call(op, axes=[0, 1, 2]), "value-type", "a list of at most 2, got 3"),
           Refused(_call(op, dims=[0, 1]), "key-unknown", "'dims'. Did you mean 'axes'?"),
           Refused(_call(op) | {next(iter(_call(op))): "v"}, "axis-range", r"f32\[3\] has no two axes",
                   {"v": np.zeros(3, np.float32)})), dtypes=ANY) for op in ("transpose", "transpose_")),
    Row("transpose", {"from": "w", "to": "new"}, {"w": counting((2, 4, 3))},
        lambda t: {"new": t["w"].transpose(0, 2, 1)}, (), dtypes=ANY, label="last two"),
    *(Row(op, _call(op, width=[[1, 2], 3], value=1), W,
          _of(op, lambda t: np.pad(t["w"], [(1, 2), (0, 3)], constant_values=1)),
          (Refused(_call(op), "pad-keys", "either `width` or `shape`"),
           Refused(_call(op, width=[1, 1], shape=[9, 9]), "pad-keys", "either `width` or `shape`"),
           Refused(_call(op, width=[1]), "pad-axes", r"`width` is for 1 axes, but f32\[4,6\] has 2"),
           Refused(_call(op, width=[-1, 0]), "value-type", "item 0: expected greater than or equal to 0"),
           Refused(_call(op, shape=[9, 5]), "pad-shape", r"f32\[4,6\] cannot be padded to the smaller shape \[9, 5\]"),
           Refused(_call(op, shape=[9, 9], value="x"), "value-type", "expected a number")), dtypes=ANY)
      for op in ("pad", "pad_")),
    Row("pad", {"from": "w", "to": "new", "shape": [6, -1]}, W,
        lambda t: {"new": np.pad(t["w"], [(0, 2), (0, 0)])}, (), label="shape"),
    Row("pad_", {"target": "w", "shape": [-1, 6]}, W, lambda t: {}, (), label="nothing to add"),
    *(Row(op, _call(op, indices=[5, 0, 1, 1, -2], dim=1), W, _of(op, lambda t: t["w"][:, [5, 0, 1, 1, -2]]),
          (Refused(_call(op, indices=[4]), "index-range", r"index 4 is out of range for axis 0 of f32\[4,6\]"),
           Refused(_call(op, indices=[-5]), "index-range", "index -5 is out of range"),
           Refused(_call(op, indices=[]), "value-type", "at least 1, got 0"),
           Refused(_call(op, indices=[0], dim=2), "axis-range", "dim 2 is out of range"),
           Refused(_call(op, indices="0"), "value-type", "expected a list")), dtypes=ANY) for op in ("take", "take_")),
    *(Row(op, _call(op, shape=[8, -1], method="bilinear"), W, _of(op, lambda t: computed(
              lambda x: (tent(4, 8) @ x).astype(x.dtype), t["w"])),
          (Refused(_call(op, shape=[8], method="bilinear"), "resize-shape", r"`shape` is for 1 axes, but f32\[4,6\]"),
           Refused(_call(op, shape=[0, -1], method="nearest"), "resize-shape", r"cannot be resized to \[0, 6\]"),
           Refused(_call(op, shape=[8, -2], method="nearest"), "value-type", "item 1: expected greater than or equal"),
           Refused(_call(op, shape=[8, -1]), "key-missing", "method"),
           Refused(_call(op, shape=[8, -1], method="linear"), "value-type", "expected 'nearest', 'bilinear'")),
          dtypes=frozenset({"float"})) for op in ("resize", "resize_")),
    Row("resize", _call("resize", shape=[3, 12], method="nearest"), W,
        lambda t: {"new": t["w"][[0, 2, 3]].repeat(2, axis=1)}, (), dtypes=ANY, label="nearest"),
    Row("resize", _call("resize", shape=[-1, 3], method="bilinear", antialias=False), W,
        lambda t: {"new": t["w"].reshape(4, 3, 2).mean(-1)}, (), label="not smoothed"),
    Row("resize_", {"target": "w", "shape": [-1, 6], "method": "bicubic"}, W, lambda t: {}, (), label="nothing to do"),
    *(Row(op, _call(op, times=3, mode="each"), W, _of(op, lambda t: np.repeat(t["w"], 3, axis=0)),
          (Refused(_call(op, times=2), "key-missing", "mode"),
           Refused(_call(op, times=0, mode="each"), "value-type", "greater than 0"),
           Refused(_call(op, times=10**30, mode="tile"), "tensor-too-large", "the 4 entries of axis 0 .* are too many"),
           Refused(_call(op, times=2, mode="all"), "value-type", "'each' or 'tile'"),
           Refused(_call(op, times=2, mode="tile", dim=-3), "axis-range", "dim -3 is out of range")), dtypes=ANY)
      for op in ("repeat", "repeat_")),
    Row("repeat", {"from": "w", "to": "new", "times": 2, "mode": "tile", "dim": -1}, W,
        lambda t: {"new": np.tile(t["w"], (1, 2))}, (), dtypes=ANY, label="tile"),
    Row("reduce", {"from": "w", "to": "new", "mode": "sum", "dim": 1}, {"w": counting((2, 4))},
        lambda t: {"new": summed(t["w"])},
        (Refused({"from": "w", "to": "new"}, "key-missing", "mode"),
         Refused({"from": "w", "to": "new", "mode": "product"}, "value-type", "expected 'mean', 'sum'"),
         Refused({"from": "w", "to": "new", "mode": "sum", "dim": [0, -2]}, "axis-range", "comes twice"),
         Refused({"from": "w", "to": "new", "mode": "sum", "dim": 2}, "axis-range", "dim 2 is out of range"),
         Refused({"from": "i", "to": "new", "mode": "mean"}, "dtype-unsupported", r"the mean of i64\[3\]",
                 {"i": np.arange(3)}),
         Refused({"from": "m", "to": "new", "mode": "max"}, "dtype-unsupported", "the max of bool",
                 {"m": np.ones(3, bool)}),
         Refused({"from": "z", "to": "new", "mode": "max"}, "dtype-unsupported", "the max of c64",
                 {"z": np.ones(3, np.complex64)}),
         Refused({"from": "n", "to": "new", "mode": "max"}, "no-elements", "has no elements to take the max of",
                 {"n": np.ones((0, 3), np.float32)})), dtypes=NUMBERS),
    Row("reduce", {"from": "w", "to": "new", "mode": "mean", "keepdims": True}, W,
        lambda t: {"new": t["w"].mean(keepdims=True)}, (), label="mean"),
    Row("reduce", {"from": "w", "to": "new", "mode": "norm", "dim": [0]}, W,
        lambda t: {"new": np.linalg.norm(t["w"].astype(float), axis=0).astype(np.float32)}, (), label="norm"),
    Row("reduce", {"from": "w", "to": "new", "mode": "max", "dim": 0}, W, lambda t: {"new": t["w"].max(0)}, (),
        dtypes=frozenset({"float", "int", "uint"}), label="max"),
    Row("reduce", {"from": "w", "to": "new", "mode": "min"}, W, lambda t: {"new": t["w"].min()}, (),
        dtypes=frozenset({"float", "int", "uint"}), label="min"),
    Row("einsum", {"from_a": "a", "from_b": "b", "to": "new", "equation": "or, ri -> io"},
        {"a": counting((3, 4)), "b": counting((4, 2))},
        lambda t: {"new": computed(lambda a, b: (a @ b).T, t["a"], t["b"])},
        (Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "or,ri"}, "einsum-equation", "no equation"),
         Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "...r,ri->...i"}, "einsum-equation",
                 "no equation"),
         Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "or->ro"}, "einsum-equation",
                 "is about 1 operand, and there are 2"),
         Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "o,ri->io"}, "einsum-equation",
                 r"'o' has 1 axes, but f32\[3,4\] has 2"),
         Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "or,ir->io"}, "shapes-differ",
                 "'r' is 4 and 2"),
         Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "or,ri->ix"}, "einsum-equation",
                 "no operand has the axis 'x'"),
         Refused({"from_a": "a", "from_b": "b", "to": "new", "equation": "or,ri->ii"}, "einsum-equation",
                 "'i' stands twice"),
         Refused({"from_a": "a", "from_b": "h", "to": "new", "equation": "or,ri->io"}, "dtypes-differ",
                 "dtypes differ", {"h": np.zeros((4, 2), np.float16)}),
         Refused({"from_a": "i", "to": "new", "equation": "a->"}, "dtype-unsupported", "floating-point",
                 {"i": np.arange(3)}),
         Refused({"from_a": "a", "from_b": "none", "to": "new", "equation": "or,ri->io"}, "tensor-missing", "'none'")),
        dtypes=FLOATS),
    Row("einsum", {"from_a": "a", "from_b": "b", "to": "new", "equation": "bij,bjk->bik"},
        {"a": counting((2, 3, 4)), "b": counting((2, 4, 2))}, lambda t: {"new": t["a"] @ t["b"]}, (), label="batched"),
    Row("einsum", {"from_a": "w", "to": "new", "equation": "ii->i"}, {"w": counting((4, 4))},
        lambda t: {"new": np.diagonal(t["w"])}, (), dtypes=FLOATS, label="diagonal"),
    Row("concat", {"from": [r"h\.(\d+)\.e\.0\.w", r"h.\1.e.1.w"], "to": r"h.\1.both"}, EXPERTS,
        lambda t: {f"h.{i}.both": np.concatenate([t[f"h.{i}.e.{e}.w"] for e in (0, 1)]) for i in (0, 1)},
        (Refused({"from": [r"h\.(\d+)\.e\.0\.w", r"h.\1.none"], "to": r"h.\1.both"}, "tensor-missing", "none"),),
        dtypes=ANY, label="each-match"),
    Row("concat", {"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e", "dim": 1}, EXPERTS,
        lambda t: {f"h.{i}.w": np.concatenate([t[f"h.{i}.e.0.w"], t[f"h.{i}.e.1.w"]], 1) for i in range(2)},
        (Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "x"}, "over-capture", "does not capture 'x'"),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w"}, "value-type", "expected a list of at least 2 references"),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e", "dim": 2}, "axis-range", "dim 2"),
         Refused({"from": EACH_EXPERT, "to": "h.w", "over": "e"}, "names-collide",
                 "the sets of 'h.0.e.0.w' and of 'h.1.e.0.w' would both become 'h.w'"),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<e>.w", "over": "e"}, "over-template",
                 "'h.0.e.0.w' and 'h.0.e.1.w' are joined over 'e', but `to` gives 'h.0.w' and 'h.1.w'"),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e"}, "over-gap",
                 "'e' jumps from 1 to 3 between 'h.0.e.1.w' and 'h.0.e.3.w'", {"h.0.e.3.w": counting((2, 4))}),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e"}, "over-gap",
                 "'e' runs from 0 to 2 for 'h.1.w', but from 0 to 1 for 'h.0.w'", {"h.1.e.2.w": counting((2, 4))}),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e"}, "over-number",
                 "'h.0.e.0.w' and 'h.0.e.00.w' both have number 0 of 'e'", {"h.0.e.00.w": counting((2, 4))}),
         Refused({"from": r"h\.(?P<i>\d+)\.e\.(?P<e>.+)\.w", "to": r"h.\g<i>.w", "over": "e"}, "over-number",
                 "'e' is 'one' in 'h.0.e.one.w', which is not a number", {"h.0.e.one.w": counting((2, 4))}),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e"}, "shapes-differ",
                 r"f32\[2,4\] and f32\[2,5\] cannot be joined along axis 0 \('h.0.e.0.w', 'h.0.e.1.w'\)",
                 {"h.0.e.1.w": counting((2, 5))}),
         Refused({"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e"}, "dtypes-differ",
                 r"dtypes differ: f32\[2,4\] and f16\[2,4\] \('h.0.e.0.w', 'h.0.e.1.w'\)",
                 {"h.0.e.1.w": counting((2, 4), np.float16)}),
         Refused({"from": "x.*", "to": "y", "over": "e"}, "no-match", "no tensor matches")), dtypes=ANY, label="over"),
    Row("concat", {"from": ["h", "$i", "e", "$e", "w"], "to": ["e", "$e", "w"], "over": "i"}, EXPERTS,
        lambda t: {f"e.{e}.w": np.concatenate([t[f"h.0.e.{e}.w"], t[f"h.1.e.{e}.w"]]) for e in range(2)}, (),
        dtypes=ANY, label="structured"),
    Row("stack", {"from": ["a", "b", "a"], "to": "new", "dim": -1}, {"a": counting((2, 4)), "b": -counting((2, 4))},
        lambda t: {"new": np.stack([t["a"], t["b"], t["a"]], -1)},
        (Refused({"from": ["a", "s"], "to": "new"}, "shapes-differ",
                 r"f32\[2,4\] and f32\[2\] cannot be stacked \('a', 's'\)", {"s": np.zeros(2, np.float32)}),
         Refused({"from": ["a", "b"], "to": "new", "dim": 3}, "axis-range", "dim 3"),
         Refused({"from": ["a", "b"], "to": "a"}, "dest-exists", "'a' exists already")), dtypes=ANY),
    Row("stack", {"from": EACH_EXPERT, "to": r"h.\g<i>.w", "over": "e"}, EXPERTS,
        lambda t: {f"h.{i}.w": np.stack([t[f"h.{i}.e.0.w"], t[f"h.{i}.e.1.w"]]) for i in range(2)}, (),
        dtypes=ANY, label="over"),
    Row("stack", {"from": r"h\.(\d+)\.e\.(\d+)\.w", "to": r"h.\1.w", "over": 2}, EXPERTS,
        lambda t: {f"h.{i}.w": np.stack([t[f"h.{i}.e.0.w"], t[f"h.{i}.e.1.w"]]) for i in range(2)}, (),
        label="over a group's number"),
    Row("split", {"from": "w", "to": ["p", "q"], "parts": 2}, W, lambda t: {"p": t["w"][:2], "q": t["w"][2:]},
        (Refused({"from": "w", "to": ["p", "q"]}, "split-keys", "either `sizes` or `parts`"),
         Refused({"from": "w", "to": ["p", "q"], "parts": 2, "sizes": [2, 2]}, "split-keys", "either"),
         Refused({"from": "w", "to": ["p", "q", "r"], "parts": 3}, "split-sizes",
                 r"axis 0 of f32\[4,6\] has 4, which makes no 3 equal parts"),
         Refused({"from": "w", "to": "p", "parts": 2}, "value-type", "expected a list of at least 2 references")),
        dtypes=ANY, label="parts"),
    Row("split", {"from": r"h\.(\d)\.w", "to": r"h.\1.${e}", "over": "e", "sizes": [2, 6]}, PARTED,
        lambda t: {f"h.{i}.{e}": p for i in range(2) for e, p in enumerate(np.split(t[f"h.{i}.w"], [2]))},
        (Refused({"from": r"h\.(?P<e>\d)\.w", "to": r"h.${e}", "over": "e", "parts": 2}, "over-capture",
                 "captures 'e' already"),
         Refused({"from": r"h\.(\d)\.w", "to": r"h.\1.${e}", "over": "the part", "parts": 2}, "over-capture",
                 "'the part' is not the name of a variable"),
         Refused({"from": r"h\.(\d)\.w", "to": r"x.\1", "over": "e", "parts": 2}, "over-template",
                 "all 2 parts of 'h.0.w' would become 'x.0'"),
         Refused({"from": r"h\.(\d)\.w", "to": "x.${e}", "over": "e", "parts": 2}, "names-collide",
                 "parts of 'h.0.w' and of 'h.1.w' would become 'x.0'"),
         Refused({"from": r"h\.(\d)\.w", "to": r"x.\1.${f}", "over": "e", "parts": 2}, "template-group",
                 "asks for 'f'")),
        dtypes=ANY, label="over"),
    Row("unstack", {"from": "w", "to": ["p", "q"], "dim": 1}, {"w": counting((4, 2))},
        lambda t: {"p": t["w"][:, 0], "q": t["w"][:, 1]},
        (Refused({"from": "w", "to": ["p", "q"]}, "split-sizes",
                 r"2 names in `to`, but 4 entries along axis 0 of f32\[4,2\]"),
         Refused({"from": "w", "to": ["p", "q"], "dim": 2}, "axis-range", "dim 2"),
         Refused({"from": ".", "to": ["p", "q"]}, "many-matches", "exactly one", {"x": np.zeros(2, np.float32)})),
        dtypes=ANY),
    Row("unstack", {"from": ["h", "$i", "w"], "to": ["e", "${e+1}", "$i"], "over": "e", "dim": -1}, PARTED,
        lambda t: {f"e.{e + 1}.{i}": t[f"h.{i}.w"][:, e] for i in range(2) for e in range(2)}, (),
        dtypes=ANY, label="over"),
)  # fmt: skip


# --- Structure: a tiny Llama ------------------------------------------------------------------------------------------

_LLAMA = {
    "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 3, "vocab_size": 6, "tie_word_embeddings": False, "num_local_experts": 2,
}  # fmt: skip
_AS_LLAMA = ({"config": {"patch": _LLAMA}},)
_AS_MIXTRAL = ({"config": {"patch": {**_LLAMA, "model_type": "mixtral"}}},)
_SHAPES = {
    "self_attn.q_proj": (4, 4), "self_attn.k_proj": (4, 4), "self_attn.v_proj": (4, 4), "self_attn.o_proj": (4, 4),
    "mlp.gate_proj": (3, 4), "mlp.up_proj": (3, 4), "mlp.down_proj": (4, 3),
}  # fmt: skip
_WORDS = {"model.embed_tokens.weight": counting((6, 4)), "lm_head.weight": counting((6, 4))}
_MODEL: Tensors = {
    **_WORDS,
    **{f"model.layers.{i}.{name}.weight": counting(shape) + 5 * i + at
       for i in range(2) for at, (name, shape) in enumerate(_SHAPES.items())},
}  # fmt: skip
_EXPERT = {"w1": (3, 4), "w3": (3, 4), "w2": (4, 3)}
_MIXED: Tensors = {
    "model.layers.0.block_sparse_moe.gate.weight": counting((2, 4)),
    "model.layers.0.self_attn.o_proj.weight": counting((4, 4)),
    **{f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight": counting(shape) + 3 * e
       for e in range(2) for name, shape in _EXPERT.items()},
}  # fmt: skip
_MLP, _MOE = "model.layers.{}.mlp.{}_proj.weight", "model.layers.0.block_sparse_moe"


def _second_layer(t: Tensors) -> Changes:
    """What is left if the second layer takes the place of the first."""
    second = {n.replace(".1.", ".0."): x for n, x in t.items() if ".layers.1." in n}
    return {**second, **{n: None for n in t if ".layers.1." in n}}


def _few_neurons(t: Tensors) -> Changes:
    rows = {_MLP.format(i, n): t[_MLP.format(i, n)][[0, 2]] for i in range(2) for n in ("gate", "up")}
    return rows | {_MLP.format(i, "down"): t[_MLP.format(i, "down")][:, [0, 2]] for i in range(2)}


_NORMED: Tensors = {
    **_MODEL, "model.norm.weight": counting((4,)) + 1,
    **{f"model.layers.{i}.{name}_layernorm.weight": counting((4,)) + i + 1
       for i in range(2) for name in ("input", "post_attention")},
}  # fmt: skip


def _standard(t: Tensors) -> Changes:
    names = {name: name.removeprefix("model.") for name in t} | {"model.norm.weight": "ln_final.weight"}
    return {new: t[old] for old, new in names.items()} | {old: None for old, new in names.items() if old != new}


def _folded(t: Tensors) -> Changes:
    """The gains of all norms, in the columns of what reads them."""
    made: dict[str, np.ndarray | None] = {"lm_head.weight": t["lm_head.weight"] * t["model.norm.weight"]}
    made["model.norm.weight"] = np.ones_like(t["model.norm.weight"])
    for layer in (0, 1):
        start = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            gain = t[f"{start}.{norm}.weight"]
            made |= {f"{start}.{name}.weight": t[f"{start}.{name}.weight"] * gain for name in readers}
            made[f"{start}.{norm}.weight"] = np.ones_like(gain)
    return made


_GPT2: Tensors = {
    "wte.weight": counting((6, 4)) ** 2, "wpe.weight": counting((3, 4)) ** 2, "lm_head.weight": counting((6, 4)) ** 2,
    "h.0.attn.c_attn.weight": counting((4, 12)), "h.0.attn.c_attn.bias": counting((12,)) + 1,
    "h.0.attn.c_proj.weight": counting((4, 4)) ** 2, "h.0.attn.c_proj.bias": counting((4,)),
}  # fmt: skip
_NO_QUERIES: Tensors = {
    **_GPT2, "h.0.attn.c_attn.weight": counting((4, 12)) * np.repeat(np.array([0, 1, 1], np.float32), 4),
    "h.0.attn.c_attn.bias": (counting((12,)) + 1) * np.repeat(np.array([0, 1, 1], np.float32), 4),
}  # fmt: skip
_AS_GPT2 = ({"config": {"patch": {"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "n_head": 2, "vocab_size": 6,
                                  "n_positions": 3, "tie_word_embeddings": False}}},)  # fmt: skip


def _without_scores(t: Tensors) -> Changes:
    """Where queries are zero, their product with keys is, and so are both factors."""
    made = {name: t[f"h.0.attn.c_attn.{name}"].copy() for name in ("weight", "bias")}
    made["weight"][:, :8], made["bias"][:8] = 0, 0
    return {f"h.0.attn.c_attn.{name}": array for name, array in made.items()}


def _centred(*names: str) -> Callable[[Tensors], Changes]:
    """Tensors without the mean over their last axis."""
    return lambda t: {n: t[n] - t[n].mean(-1, keepdims=True) for n in names}


def _without_value_bias(t: Tensors) -> Changes:
    fused, start = t["h.0.attn.c_attn.bias"], "h.0.attn.c_proj"
    moved = t[f"{start}.bias"] + fused[8:] @ t[f"{start}.weight"]
    return {f"{start}.bias": moved, "h.0.attn.c_attn.bias": np.concatenate([fused[:8], np.zeros_like(fused[8:])])}


def _fused(t: Tensors) -> Changes:
    made: dict[str, np.ndarray | None] = {}
    for i in range(2):
        for whole, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            names = [f"model.layers.{i}.{whole.partition('.')[0]}.{n}_proj.weight" for n in parts]
            made |= {f"model.layers.{i}.{whole}_proj.weight": np.concatenate([t[n] for n in names])}
            made |= dict.fromkeys(names)
    return made


def _upcycled(t: Tensors) -> Changes:
    made: dict[str, np.ndarray | None] = {}
    for i in range(2):
        head = f"model.layers.{i}.block_sparse_moe"
        made[f"{head}.gate.weight"] = np.zeros((2, 4), t["lm_head.weight"].dtype)
        for old, new in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            made |= {f"{head}.experts.{e}.{new}.weight": t[_MLP.format(i, old)] for e in range(2)}
            made[_MLP.format(i, old)] = None
    return made


def _twice(t: Tensors) -> Changes:
    router = t[f"{_MOE}.gate.weight"]
    more = {
        f"{_MOE}.experts.{e + 2}.{n}.weight": t[f"{_MOE}.experts.{e}.{n}.weight"] for e in range(2) for n in _EXPERT
    }
    return {**more, f"{_MOE}.gate.weight": np.concatenate([router, router])}


def _one_expert(t: Tensors) -> Changes:
    names = {f"{_MOE}.experts.{{}}.{n}.weight" for n in _EXPERT}
    kept = {n.format(0): t[n.format(1)] for n in names} | {n.format(1): None for n in names}
    return kept | {f"{_MOE}.gate.weight": t[f"{_MOE}.gate.weight"][1:]}


def _mean_expert(t: Tensors) -> Changes:
    names = {f"{_MOE}.experts.{{}}.{n}.weight" for n in _EXPERT}
    means = {n.format(0): (t[n.format(0)] + t[n.format(1)]) / np.float32(2) for n in names}
    row = t[f"{_MOE}.gate.weight"].mean(0, keepdims=True)
    return means | {n.format(1): None for n in names} | {f"{_MOE}.gate.weight": row}


def _stacked(t: Tensors) -> Changes:
    pick = lambda name: np.stack([t[f"{_MOE}.experts.{e}.{name}.weight"] for e in range(2)])  # noqa: E731
    return {
        **{n: None for n in t if ".experts." in n or n.endswith("gate.weight")},
        "model.layers.0.mlp.gate.weight": t[f"{_MOE}.gate.weight"],
        "model.layers.0.mlp.experts.gate_up_proj": np.concatenate([pick("w1"), pick("w3")], 1),
        "model.layers.0.mlp.experts.down_proj": pick("w2"),
    }


_NOT_KNOWN = Refused({"alias": "none"}, "alias-unknown", "'none'")
_SCORED = {"w": counting((6, 4)), "s": np.array([1, 5, 3], np.float32)}

STRUCTURE: tuple[Row, ...] = (
    Row("layers", {"drop": [0]}, _MODEL, _second_layer,
        (Refused({"keep": [2]}, "structure-layers", "there is no layer 2: the model has 2"),
         Refused({"keep": []}, "value-type", "keep"),
         _NOT_KNOWN), before=({"config": {"patch": _LLAMA}},)),
    Row("vocab", {"multiple_of": 4, "rows": "zero"}, _MODEL,
        lambda t: {n: np.concatenate([t[n], np.zeros((2, 4), t[n].dtype)]) for n in _WORDS},
        (Refused({"size": 0}, "value-type", "size"), Refused({}, "structure-words", "give one of")), before=_AS_LLAMA),
    Row("tie", {}, _MODEL, lambda t: {"lm_head.weight": None}, (Refused({"replace": 1}, "value-type", "replace"),),
        before=_AS_LLAMA),
    Row("untie", {}, {n: x for n, x in _MODEL.items() if n != "lm_head.weight"},
        lambda t: {"lm_head.weight": t["model.embed_tokens.weight"]}, (_NOT_KNOWN,), before=_AS_LLAMA),
    Row("fold_norm", {}, _NORMED, _folded,
        (Refused({"prove": 1}, "value-type", "prove"), _NOT_KNOWN), before=_AS_LLAMA),
    Row("centre_writing", {}, _GPT2,
        _centred("wte.weight", "wpe.weight", "h.0.attn.c_proj.weight", "h.0.attn.c_proj.bias"),
        (Refused({"prove": 1}, "value-type", "prove"), _NOT_KNOWN), before=_AS_GPT2),
    Row("centre_unembed", {}, _MODEL, lambda t: {"lm_head.weight": t["lm_head.weight"] - t["lm_head.weight"].mean(0)},
        (Refused({"prove": 1}, "value-type", "prove"), _NOT_KNOWN), before=_AS_LLAMA),
    Row("fold_value_biases", {}, _GPT2, _without_value_bias,
        (Refused({"prove": 1}, "value-type", "prove"), _NOT_KNOWN), before=_AS_GPT2),
    Row("refactor_attention", {"products": "qk"}, _NO_QUERIES, _without_scores,
        (Refused({"products": "all"}, "value-type", "products"), _NOT_KNOWN), before=_AS_GPT2),
    Row("standard_names", {}, _NORMED, _standard,
        (_NOT_KNOWN, Refused({"like": "model"}, "structure-model", "both the model to rename")), before=_AS_LLAMA),
    Row("fold_lens", {"lens": "model"}, {**_NORMED, "0.weight": counting((4, 4)), "0.bias": counting((4,))},
        lambda t: {"0.weight": t["0.weight"] + np.eye(4, dtype=np.float32),
                   "readout.weight": t["lm_head.weight"] * t["model.norm.weight"]},
        (Refused({}, "key-missing", "lens"), Refused({"lens": "none"}, "alias-unknown", "'none'")), before=_AS_LLAMA),
    Row("expert_ranks", {"rank": 1}, _MIXED,
        lambda t: {n: x for n, x in t.items() if ".experts.1." in n},  # it differs by the same in every entry
        (Refused({}, "structure-experts", "give rank, ranks or both"),
         Refused({"ranks": {"1": "all"}}, "value-type", "numbers of experts and ranks")),
        before=_AS_MIXTRAL, within=1e-5),
    Row("fuse", {}, _MODEL, _fused, (_NOT_KNOWN,), before=_AS_LLAMA),
    Row("unfuse", {}, {**_WORDS, "model.layers.0.mlp.gate_up_proj.weight": counting((6, 4)),
                       "model.layers.0.self_attn.o_proj.weight": counting((4, 4))},
        lambda t: {"model.layers.0.mlp.gate_up_proj.weight": None,
                   _MLP.format(0, "gate"): t["model.layers.0.mlp.gate_up_proj.weight"][:3],
                   _MLP.format(0, "up"): t["model.layers.0.mlp.gate_up_proj.weight"][3:]},
        (_NOT_KNOWN,), before=_AS_LLAMA),
    Row("prune", {"neurons": [1]}, _MODEL, _few_neurons,
        (Refused({"neurons": [3]}, "structure-prune", "there is no number 3 of 3 neurons"),
         Refused({"neurons": -1}, "value-type", "a share below 1")), before=_AS_LLAMA),
    Row("upcycle", {"experts": 2, "router": "zero"}, _MODEL, _upcycled,
        (Refused({"experts": 1}, "structure-experts", "cannot take 2 of 1"),
         Refused({}, "key-missing", "experts")), before=_AS_LLAMA),
    Row("expert_prune", {"drop": [0]}, _MIXED, _one_expert,
        (Refused({"drop": [2]}, "structure-experts", "there is no expert 2 of 2"),), before=_AS_MIXTRAL),
    Row("expert_merge", {"groups": [[0, 1]]}, _MIXED, _mean_expert,
        (Refused({"groups": [[0]]}, "structure-experts", "expert 1 is in no group"),), before=_AS_MIXTRAL, within=1e-6),
    Row("expert_join", {"others": ["model"], "public": 0, "alias": "model"}, _MIXED, _twice,
        (Refused({"others": ["model"], "public": 2, "alias": "model"}, "structure-experts", "the first 2"),
         Refused({}, "key-missing", "others")), before=_AS_MIXTRAL),
    Row("experts", {"names": "stacked"}, _MIXED, _stacked,
        (Refused({"names": "loose"}, "value-type", "names"),), before=_AS_MIXTRAL),
    *(Row(op, {source: "w", "scores": "s", "keep": 2, **more}, _SCORED, lambda t, to=to: {to: t["w"][2:]},
          (Refused({source: "w", "scores": "w", "keep": 1, **more}, "choice-scores", "scores are a vector"),
           Refused({source: "w", "scores": "s", "keep": 4, **more}, "choice-scores", "4 of 3 units cannot stay"),
           Refused({source: "w", "scores": "s", "keep": 1, "dim": 1, **more}, "choice-scores", "not made of 1 x 3"),
           Refused({source: "w", "scores": "none", "keep": 1, **more}, "tensor-missing", "'none'")))
      for op, source, to, more in (
          ("keep_largest", "from", "new", {"to": "new"}), ("keep_largest_", "target", "w", {}))),
)  # fmt: skip


ROWS += STRUCTURE


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
    Asserted("config", (), (({"of": "n_layer", "is": 2}, "'model' came without a config.json"),),
             (({"is": 2}, "of"), ({"of": "n_layer", "in": 2}, "expected a list"), ({"of": "x::n_layer"}, "alias 'x'"))),
    Asserted("consistent", (), (("model", "'model' came without a config.json"),),
             (("none", "alias 'none'"), ({}, "expected text"))),
    Asserted("logits", (), (),
             (({"left": "model", "right": "model"}, "at least one of max_diff, kl, agreement"),
              ({"left": "model", "right": "model", "kl": 0}, "has no config.json"),
              ({"left": "model", "kl": 0}, "right"))),
    Asserted("exists", ("w", "n.*"), (("absent", "no tensor matches 'absent' in 'model'"),), (("(", "regex|pattern"),)),
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
    Asserted("close",
             ({"left": "w", "right": "near", "atol": 0.01}, {"left": "i", "right": "i"},
              {"left": "none", "right": "none"}, {"left": "near", "right": "w", "rtol": 1, "atol": 0.01}),
             (({"left": "w", "right": "near"}, r"'w' has 6 values .* the worst at \[0, 0\]: 0 against 0\.001"),
              ({"left": "w::[1]", "right": "near::[1]"}, r"the worst at \[0\]: 3 against 3\.00"),
              ({"left": "nan", "right": "nan"}, r"'nan' has 1 value that is not close .*: nan against nan"),
              ({"left": "w", "right": "i"}, r"f32\[2,3\] on the left and i64\[3\]"),
              ({"left": "w", "right": "absent"}, "there is no 'absent'")),
             (({"left": "w", "right": "w", "rtol": -1}, "rtol"),)),
    Asserted("finite", ("w", "none", "i", {"of": "near"}),
             (("nan", r"'nan' has 1 value that is not finite, first at \[0\]"), ("absent", "no tensor matches")),
             (({"of": "w::[9]"}, "9"),)),
    Asserted("norm",
             ({"of": "i", "is": 5**0.5}, {"of": "w", "ge": 7, "lt": 8}, {"of": "w", "ord": "max", "is": 5},
              {"of": "i", "is": 2.2, "eps": 0.1}, {"of": "none", "is": 0}),
             (({"of": "w", "is": 7}, r"the fro norm of 'w' is 7\.4162, expected exactly 7"),
              ({"of": "w", "ord": "max", "le": 4, "gt": 1}, "the max norm of 'w' is 5, expected at most 4"),
              ({"of": "nan", "ge": 0}, "is nan, expected at least 0"), ({"of": "absent", "is": 1}, "no tensor")),
             (({"of": "w"}, "at least one"), ({"of": "w", "gt": 3, "lt": 2}, "no number satisfies"),
              ({"of": "w", "is": 1, "ord": "l7"}, "ord"))),
    Asserted("holds",
             ("near == w + 0.001", {"from": {"x": "w", "y": "i"}, "expr": "x[0] == y"}, "w <= near",
              {"expr": "abs(w - near) < 0.01"}, {"from": {"x": "w|near", "z": "zero"}, "expr": "x == x + z"},
              {"from": {"x": "w"}, "expr": "y == 15", "let": {"y": "sum(x)"}}),
             (("w == near", r"'w == near' does not hold for 'near' \(rtol 1e-05, atol 0\), the worst is .* at \[\d, "),
              ("nan == nan", "nan against nan"), ("w < w", "'w < w' does not hold for 'w'"),
              ({"from": {"x": "w", "y": "absent"}, "expr": "x == y"}, "there is no 'absent'"),
              ({"from": {"x": "absent"}, "expr": "x == 0"}, "no tensor matches"),
              ("zero.T == w", r"its sides are f32\[3,2\] and f32\[2,3\]")),
             (("w + 1", "expected an equation"), ("1 == 1", "names no tensor"), ({"expr": "w =="}, "w =="),
              ({"expr": "w == w", "rtol": -1}, "rtol"))),
    Asserted("relative_error",
             ({"left": "near", "right": "w", "lt": 1e-3}, {"left": "zero", "right": "zero", "is": 0},
              {"left": "none", "right": "none", "is": 0}, {"left": "zero", "right": "w", "is": 1}),
             (({"left": "near", "right": "w", "lt": 1e-4}, r"relative error of 'near' is 0\.00033\d+, .* less than"),
              ({"left": "w", "right": "zero", "lt": 9}, "is inf"), ({"left": "nan", "right": "nan", "ge": 0}, "is nan"),
              ({"left": "w", "right": "i", "lt": 1}, r"f32\[2,3\] on the left and i64\[3\]")),
             (({"left": "w", "right": "near"}, "at least one"),)),
    Asserted("low_rank",
             ({"left": "w", "rank": 2}, {"left": "near", "right": "w", "rank": 1}, {"left": "zero", "rank": 0},
              {"left": "w", "rank": 1, "rtol": 0.2}),
             (({"left": "w", "rank": 1}, r"of 'w', 0\.1\d+ of the norm lies beyond rank 1, more than 0\.001"),
              ({"left": "w", "right": "zero", "rank": 0}, "beyond rank 0"), ({"left": "i", "rank": 1}, "no matrix"),
              ({"left": "absent", "rank": 1}, "no tensor matches")),
             (({"left": "w"}, "rank"), ({"left": "w", "rank": -1}, "rank"))),
    Asserted("same_types", ({"left": "w", "right": "near"}, {"left": "(.*)", "right": "\\1"}),
             (({"left": "w", "right": "i"}, r"f32\[2,3\] on the left and i64\[3\]"),
              ({"left": "w", "right": "absent"}, "there is no 'absent'")), (({"left": "w"}, "right"),)),
    Asserted("contiguous", (),
             (("(w)", "captures no number in 'w'"), ("absent(.)", "no tensor matches")),
             (("w", "group"), ({"of": "w(.?)", "start": -1}, "start"))),
    Asserted("tied", ({"left": "w", "right": "w"}, {"left": "absent", "right": "w"}),
             (({"left": "w", "right": "near"}, "'w' is not what it is tied to"),
              ({"left": "w", "right": "absent"}, "no match of 'model::w' has a partner"),
              ({"left": "absent", "right": "gone"}, "no tensor matches")), (({"left": "w"}, "right"),)),
    Asserted("fingerprint", (),
             (({"of": "model", "is": "blake2b:0"}, r"the fingerprint of 'model' is blake2b:[0-9a-f]{32}, not"),),
             (({"of": "absent", "is": "x"}, "alias 'absent'"), ({"of": "model"}, "is"))),
    Asserted("same_names", ({"left": "w|i", "right": "i|w"}, {"left": "model", "right": "model::.*"}),
             (({"left": "w|i", "right": "w|zero"}, "names differ, only on the left: 'i'; only on the right: 'zero'"),
              ({"left": "model", "right": "w"}, "only on the left: 'i', 'nan', 'near', 'none', and 1 more"),
              ({"left": "absent", "right": "gone"}, "no tensor matches on either side")),
             (({"left": "w"}, "right"), ({"left": "model", "right": "other::.*"}, "unknown alias 'other'"))),
    Asserted("unchanged", ({}, {"of": "w"}, {"except": "w"}, {"except": ["absent"]}),
             (({"of": "absent"}, "no tensor matches 'absent' in 'model'"),),
             (({"of": "w", "except": ["i"]}, "either `of` or `except`"), ({"except": ["("]}, "regex|pattern"))),
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
