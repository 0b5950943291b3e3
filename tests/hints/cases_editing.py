"""Mistakes in closed-form edits, what their hints say to do, and what must come out of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.hints.cases import Case, Mend, add
from tests.hints.cases_ops import put

W = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
KEY, VALUE = np.array([0, 0, 2], np.float32), np.array([4, 6], np.float32)
EDITED = np.array([[1, 0, 2], [0, 1, 3]], np.float32)
A = {"w": W, "k": KEY, "v": VALUE, "bias": np.ones(3, np.float32), "ids": np.ones((2, 3), np.int32)}
B = {"unused": np.ones(1, np.float32)}
NORMS = np.ones(3, np.float32)
WANDA = {"w": np.array([[1, 2, 3], [6, 5, 4]], np.float32), "x": NORMS, "bias": NORMS, "h": np.eye(3, dtype=np.float32)}
HALF = {"w": np.array([[0, 2, 3], [6, 5, 0]], np.float32)}
UNITS = {"up": np.eye(3, 2, dtype=np.float32), "down": np.ones((2, 3), np.float32)}

TWICE = {f"{name}{at}": x for name, x in UNITS.items() for at in ("", "2")}


def rome(**keys: Any) -> list[Any]:
    return [{"rome_": {"target": "a::w", "keys": "a::k", "values": "a::v"} | keys}]


def ablate(**keys: Any) -> list[Any]:
    return [{"ablate_": {"target": "a::w", "direction": "a::k", "dim": 1} | keys}]


def wanda(**keys: Any) -> list[Any]:
    return [{"wanda_": {"target": "a::w", "norms": "a::x", "ratio": 0.4} | keys}]


def only(says: str, target: str = "a::w") -> Mend:
    return put(says, target=target)


def case(
    name: str, code: str, steps: list[Any], mend: Mend, a: Any, expect: Any = (), *, b: Any = B, **keys: Any
) -> Case:
    return Case(name, code, steps, mend, dict(expect), a=a, b=b, **keys)


EDITS = [
    case("a fact in whole numbers", "dtype-unsupported", rome(target="a::ids"),
         only("Cast it to a float first, or narrow the pattern."), A, {"w": EDITED}, of="editing/arrays.py"),
    case("a fact in a bias", "not-a-matrix", rome(target="a::w|bias"), only("Narrow the pattern to matrices."), A,
         {"w": EDITED}, of="editing/facts.py"),
    case("a key and a value that changed places", "shapes-differ", rome(keys="a::v", values="a::k"),
         put("exchange `keys` and `values`", keys="a::k", values="a::v"), A, {"w": EDITED}),
    case("a fact in a matrix of GPT-2", "shapes-differ", rome(), add(2), A | {"w": W.T.copy()}, {"w": EDITED.T}),
    case("a fact of another width", "shapes-differ", rome(values="a::k"),
         put("of a single fact [in] and [out]", values="a::v"), A, {"w": EDITED}),
    case("several facts for rome", "shapes-differ", rome(keys="a::ks", values="a::vs"),
         lambda plan, hint: put("a slice such as `keys::[0]`", keys="a::ks::[0]", values="a::vs::[0]")(plan, hint),
         {"w": W, "ks": np.stack([KEY, KEY]), "vs": np.stack([VALUE, VALUE])}, {"w": EDITED}),
    case("more keys than inputs", "shapes-differ", [{"emmet_": {"target": "a::w", "keys": "a::ks", "values": "a::vs"}}],
         lambda plan, hint: put("a slice such as `keys::[:3]`", keys="a::ks::[:3]", values="a::vs::[:3]")(plan, hint),
         {"w": W, "ks": np.eye(4, 3, dtype=np.float32), "vs": np.arange(8, dtype=np.float32).reshape(4, 2)},
         {"w": np.arange(6, dtype=np.float32).reshape(3, 2).T}),
    case("a covariance that weighs less than nothing", "value-type",
         [{"memit_": {"target": "a::w", "keys": "a::k", "values": "a::v", "covariance": "a::c", "weight": -1}}],
         put("Give a positive weight", weight=1), A | {"c": np.eye(3, dtype=np.float32)},
         {"w": W + np.array([[0, 0, 1.6], [0, 0, 2.4]], np.float32)}),
    case("too many directions", "not-a-matrix", ablate(direction="a::ks"),
         put("Give one direction [width]", direction="a::k"), {"w": W, "k": KEY, "ks": np.ones((4, 3), np.float32)}),
    case("a direction in whole numbers", "dtype-unsupported", ablate(target="a::ids"),
         lambda plan, hint: put("or write `{name: PATTERN, kind: float}`",
                                target={"alias": "a", "name": "w|ids", "kind": "float"})(plan, hint), A,
         of="ops/editing.py"),
    case("a direction along the wrong axis", "shapes-differ", ablate(dim=0),
         put("Choose the axis of that width", dim=1), A,
         of="ops/editing.py"),
    case("Fisher information of another shape", "shapes-differ",
         [{"consolidate_": {"target": "a::w", "old": "a::w", "fisher": "a::bias"}}],
         put("have a value for each entry", fisher="a::w"), A),
    case("a pull away", "value-type",
         [{"consolidate_": {"target": "a::w", "old": "a::w", "fisher": "a::w", "strength": -3}}],
         put("With 0 the weights stay", strength=0), A),
    case("pruning without an amount", "key-missing", wanda(ratio=None), add(), WANDA,
         {"w": np.array([[0, 2, 3], [6, 5, 0]], np.float32)}),
    case("pruning all of a group", "value-type", wanda(ratio=None, pattern="3:3"),
         put("Write how many stay of how many", pattern="2:3"), WANDA, HALF),
    case("pruning a bias", "not-a-matrix", wanda(target="a::w|bias"), only("Narrow the pattern to matrices."), WANDA,
         HALF, of="editing/wanda.py"),
    case("groups that do not divide", "shapes-differ", wanda(ratio=None, pattern="1:2"),
         put("Choose `ratio` for it", pattern=None, ratio=0.4), WANDA, HALF),
    case("norms of outputs", "shapes-differ", wanda(norms="a::x::[:2]"),
         put("They are the norms of the inputs [in].", norms="a::x"), WANDA, HALF),
    case("a Hessian of outputs", "shapes-differ",
         [{"sparsegpt_": {"target": "a::w", "hessian": "a::h::[:2, :2]", "ratio": 0.4, "damping": 0}}],
         put("It holds the inner products of the inputs [in, in].", hessian="a::h"), WANDA,
         {"w": np.array([[0, 0, 3], [6, 5, 4]], np.float32)}),
    case("models of other widths", "shapes-differ", [{"rebasin": {"target": "a::up", "like": "b"}}],
         put("Only models of one architecture", target="a::down"), UNITS,
         b=UNITS | {"up": np.ones((4, 2), np.float32)}),
    case("units of whole numbers", "dtype-unsupported", [{"rebasin": {"target": "a::ids", "like": "b"}}],
         only("Narrow the pattern.", "a::up"), UNITS | {"ids": np.ones((2, 2), np.int32)}, of="ops/editing.py",
         b=UNITS | {"ids": np.ones((2, 2), np.int32)}),
    case("units along another axis", "shapes-differ",
         [{"rebasin": {"target": "a::up", "like": "b", "others": {"down": 0}}}],
         put("Give for each template the axis of the units.", others={"down": 1}), UNITS, b=UNITS),
    case("a model that is to be like itself", "value-type", [{"rebasin": {"target": "a::up", "like": "a"}}],
         put("Name the alias of the other model", like="b"), UNITS, b=UNITS),
    case("a gate that keeps its order", "unmatched",
         [{"rebasin": {"target": "a::mlp.up.w", "like": "b"}}],
         put("Give a template for it in `others`", others={"mlp.gate.w": 0}),
         {"mlp.up.w": W, "mlp.gate.w": W * 2}, {"mlp.up.w": W[::-1], "mlp.gate.w": W[::-1] * 2},
         b={"mlp.up.w": W[::-1], "mlp.gate.w": W[::-1]}, note=True),
    case("units along both axes of a matrix", "names-collide",
         [{"rebasin": {"target": "a::up", "like": "b", "others": {"up": 1}}}],
         put("Give templates of other tensors.", others={"down": 1}), UNITS, UNITS, b=UNITS),
    case("two sets of units along one axis", "names-collide",
         [{"rebasin": {"target": "a::up.*", "like": "b", "others": {"down": 1}}}],
         put("Give each set tensors of its own: a capture `(...)` in the pattern", target="a::up(.*)",
             others={"down\\1": 1}), TWICE, TWICE, b=TWICE),
]  # fmt: skip
