"""Mistakes in the op `merge`, what their hints say to do, and what must come out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from tests.hints.cases import A, B, Case, Mend, add, changed, quoted, step
from tests.hints.cases_adapters import do_first
from tests.hints.cases_ops import put

V = {"v": A["v"]}
W = {"v": B["v"]}
MEAN = (A["v"] + B["v"]) / 2
TALL = {"v": np.array([[5, 6], [7, 8], [9, 9]], np.float32)}
CODES = {"x": np.array([[1, 2], [4, 8]], np.int8), "x_scale": np.array([[2], [4]], np.float32)}
TWICE = {"x": CODES["x"], "x_scale": CODES["x_scale"] * 2}
LOUD = A["v"] + np.array([[1, 2], [3, 40]], np.float32)
LEFT_OUT = A["v"] + np.array([[1, 2], [3, 0]], np.float32)


def merge(**keys: Any) -> list[Any]:
    return [{"merge": {"method": "linear", "models": ["a", "b"], "to": "a", **keys}}]


def parameters(says: str, **values: Any) -> Mend:
    """Give parameters of the method other values, as the hint says in words."""
    return changed(lambda plan: step(plan)[1].__setitem__("parameters", values), says=says)


def models(says: str, given: Any) -> Mend:
    """Give other models, as the hint says in words."""
    return changed(lambda plan: step(plan)[1].__setitem__("models", given), says=says)


def _case(name: str, code: str, steps: list[Any], mend: Mend, made: np.ndarray, **facts: Any) -> Case:
    return Case(name, code, steps, mend, {"v": made}, a=facts.pop("a", V), b=facts.pop("b", W), **facts)


def added_cast(plan: Any, hint: str) -> Any:
    """Cast the result after it was merged, as the hint says in words."""
    assert "`cast_` the result afterwards" in hint
    plan["transforms"].append({"cast_": {"target": "a::v", "to": "int32"}})
    return plan


STACKS = [{f"layers.{name}": np.stack([np.full(size, at + layer, np.float32) for layer in range(2)])
           for name, size in (("w", (2, 3)), ("b", (2, 1)))} for at in (1, 5)]  # fmt: skip

TOLD = [{**x, "layers.u": x["layers.w"][:, :1, :]} for x in STACKS]
"""Stacks of which shapes tell the axis of layers."""

MERGES = [
    _case("slerp without t", "merge-parameter", merge(method="slerp"),
          lambda plan, hint: parameters("with a value of your own", t=0)(add()(plan, hint), hint), A["v"]),
    _case("a parameter of the method among the keys", "key-unknown", merge(method="slerp", t=0),
          put("Parameters of a method go under `parameters`", parameters={"t": 0}, t=None), A["v"]),
    _case("a list that is no gradient", "merge-parameter", merge(method="slerp", parameters={"t": []}),
          parameters("A list goes from the first layer to the last", t=[0, 0]), A["v"]),
    _case("a list by layer of stacked layers", "merge-parameter", merge(method="slerp", parameters={"t": [0, 1]}),
          parameters("Give one number", t=0), A["v"]),
    _case("slerp without t for some names", "merge-parameter", merge(method="slerp", parameters={"t": {"w": 0}}),
          parameters("Add a last pattern for all names to `t`: `'.*': 0.5`", t={"w": 0, ".*": 0}), A["v"],
          a={**V, "w": A["v"]}, b={**W, "w": B["v"]}),
    _case("a pattern of no name", "merge-parameter", merge(models={"a": {"weight": {"u": 3, ".*": 1}}, "b": 1}),
          lambda plan, hint: models("Names that are merged", {"a": {"weight": {hint[:-1].split()[-1]: 1}}, "b": 1})(
              plan, hint), MEAN, note=True),
    _case("an axis of layers where there are none", "merge-parameter", merge(layer_axis=0),
          put("Leave `layer_axis` out;", layer_axis=None), MEAN),
    _case("an axis of layers of tensors without a word for layers", "merge-parameter", merge(layer_axis=0),
          put("name those tensors by `of`", of="v"), MEAN),
    Case("layers that are merged as one", "merge-parameter",
         merge(method="bitdelta", base="a", models=["b"], to="a"), put("say `layer_axis: 0`", layer_axis=0), STACKS[1],
         a=STACKS[0], b=STACKS[1], note=True),
    Case("layers that shapes alone tell", "merge-parameter",
         merge(method="bitdelta", base="a", models=["b"], to="a"), put("If so, say `layer_axis: 0`.", layer_axis=0),
         TOLD[1], a=TOLD[0], b=TOLD[1], note=True),
    _case("whole numbers as a result", "merge-parameter", merge(dtype="int8"),
          lambda plan, hint: added_cast(put("Name a float dtype", dtype="float32")(plan, hint), hint),
          MEAN.astype(np.int32)),
    _case("a pattern behind an alias", "merge-models", merge(models=["a::v.*", "b"]),
          models("Write the alias alone", ["a", "b"]), MEAN),
    _case("a share above one", "merge-parameter",
          merge(method="ties", base="a", models=["b"], parameters={"density": 2}),
          parameters("Give a number from 0 to 1.", density=1), B["v"]),
    _case("a share without a value", "merge-parameter",
          merge(method="ties", base="a", models=["b"], parameters={"density": None}),
          parameters("Give it a value, or leave it out.", density=1), B["v"]),
    _case("a share without a value, left out", "merge-parameter",
          merge(method="ties", base="a", models=["b"], parameters={"density": None}),
          put("or leave it out.", parameters=None), B["v"]),
    _case("parameters without a value", "merge-parameter", merge(parameters=None), put("Leave it out", parameters=None),
          MEAN),
    _case("parameters without a value, given", "merge-parameter", merge(parameters=None),
          parameters("or give any of these: weight, normalize.", normalize=True), MEAN),
    _case("a parameter of another method", "merge-parameter", merge(parameters={"density": 0.5}),
          parameters("Its parameters: weight, normalize.", normalize=True), MEAN),
    _case("a word that is none", "merge-parameter",
          merge(method="ties", base="a", models=["b"], parameters={"threshold": "global"}),
          lambda plan, hint: parameters("Write", threshold=quoted(hint)[0].split()[-1])(plan, hint), B["v"]),
    _case("weights without a sum", "merge-parameter", merge(models={"a": 1, "b": -1}),
          models("Give weights that do not add up to 0", {"a": 1, "b": 1}), MEAN),
    _case("probabilities beyond one", "merge-parameter",
          merge(method="della_linear", base="a", models=["b"], parameters={"density": 0.9}),
          parameters("Density 0 keeps nothing, 1 all", density=1), B["v"]),
    _case("a word that is nearly one", "merge-parameter",
          merge(method="emr", base="a", models=["b"], parameters={"task": "bb"}),
          lambda plan, hint: parameters("Write", task=quoted(hint)[0].split()[-1])(plan, hint), B["v"]),
    _case("a word that may be left out", "merge-parameter",
          merge(method="emr", base="a", models=["b"], parameters={"task": "c"}),
          put("or leave it out", parameters=None), B["v"]),
    _case("more votes than models", "merge-parameter", merge(method="consensus", base="a", models=["b"]),
          lambda plan, hint: put("or write", **yaml.safe_load(quoted(hint)[0]))(plan, hint), B["v"]),
    _case("a part of a vote", "merge-parameter",
          merge(method="consensus", base="a", models=["b"], parameters={"least": 1.5}),
          parameters("Give a whole number.", least=1), B["v"]),
    _case("a switch that is halfway", "merge-parameter", merge(parameters={"normalize": 0.5}),
          lambda plan, hint: parameters("Write", **yaml.safe_load(quoted(hint)[0]))(plan, hint), MEAN),
    _case("largest entries that are kept", "merge-parameter",
          merge(method="breadcrumbs", base="a", models=["b"], parameters={"gamma": 0.25}, to="a"),
          lambda plan, hint: parameters("keep fewer", gamma=0.25, **yaml.safe_load(quoted(hint)[0])["parameters"])(
              plan, hint), LEFT_OUT, b={"v": LOUD}, note=True),
    _case("no statistics", "merge-parameter", merge(method="fisher"),
          models("Name the alias of a checkpoint", {"a": {"statistics": "b"}, "b": {"statistics": "b"}}), MEAN),
    _case("statistics that no key names", "merge-parameter", merge(method="fisher"),
          lambda plan, hint: models("Name the alias of a checkpoint", {
              **yaml.safe_load(quoted(hint)[0]), "b": {"statistics": "s"}})(plan, hint), MEAN,
          plan={"inputs": ["a::a.safetensors", "b::b.safetensors", "s::there.safetensors"]}),
    _case("Fisher information of another shape", "shapes-differ",
          merge(method="fisher", models={"b": {"statistics": "a"}}),
          lambda plan, hint: put("has a value for each entry", to="c")(
              models("Fisher", {"b": {"statistics": "b"}})(plan, hint), hint) | {
              "output": {"path": "out.safetensors", "alias": "c"}}, B["v"], a={"v": A["v"][0]}),
    _case("inner products of another shape", "shapes-differ",
          merge(method="regmean", models={"b": {"statistics": "a"}}),
          lambda plan, hint: put("They are the inner products of its inputs", to="c")(
              models("[2, 2]", {"b": {"statistics": "b"}})(plan, hint), hint) | {
              "output": {"path": "out.safetensors", "alias": "c"}}, np.eye(2, dtype=np.float32), a={"v": A["v"][0]},
          b={"v": np.eye(2, dtype=np.float32)}),
    *(_case(f"inner products of the outputs, {words}", "shapes-differ",
            merge(method="regmean", models={"b": {"statistics": "a"}}, to="c", parameters={"transposed": was}),
            lambda plan, hint, words=words: put(f"If matrices are {words}", **yaml.safe_load(quoted(hint)[0]))(
                plan, hint) | {"output": {"path": "out.safetensors", "alias": "c"}}, matrix,
            a={"v": np.eye(2, dtype=np.float32)}, b={"v": matrix})
      for was, words, matrix in ((False, "[in, out]", A["v"][:, :1]), (True, "[out, in]", A["v"][:1]))),
    _case("task vectors without a base", "merge-models", merge(method="task_arithmetic", models=["b"]),
          lambda plan, hint: put("the model that the others were made of", base="a")(plan, hint), B["v"]),
    _case("an average with a base", "merge-models", merge(models=["b"], base="a"),
          lambda plan, hint: put("name it under `models`", base=None, models=["a", "b"])(plan, hint), MEAN),
    _case("slerp of one model", "merge-models", merge(method="slerp", models=["a"], parameters={"t": 0}),
          models("Name as many under `models`.", ["a", "b"]), A["v"]),
    _case("shapes that differ", "shapes-differ", merge(models=["a", "b"]),
          lambda plan, hint: put("skip", on_mismatch="skip")(plan, hint), A["v"], b=TALL),
    _case("shapes that differ, merged in part", "shapes-differ", merge(models=["a", "b"]),
          lambda plan, hint: put("merges the first entries along each axis", on_mismatch="common")(plan, hint),
          (A["v"] + TALL["v"][:2]) / 2, b=TALL),
    Case("quantized integers", "scale-ignored", merge(), do_first,
         {"x": np.array([[6, 12], [48, 96]], np.float32) / 2, "x_scale": None}, a=CODES, b=TWICE),
    _case("models of different dtypes", "merge-dtype", merge(),
          lambda plan, hint: put("Give `dtype: float32`", dtype="float32")(plan, hint),
          MEAN, b={"v": W["v"].astype(np.float64)}, note=True),
]  # fmt: skip
