"""Mistakes, what their hints say to do, and what must come out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import yaml

Plan = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

F16, BF16 = np.float16, ml_dtypes.bfloat16
A = {
    "w": np.arange(4, dtype=F16), "v": np.array([[1, 2], [3, 4]], np.float32), "ids": np.array([29, 3, 7]),
    "mask": np.array([True, False]), "n.0.b": np.array([1, 2], BF16), "n.1.b": np.array([3, 4], BF16),
}  # fmt: skip
B = {
    "w": A["w"] + F16(2), "v": A["v"] * 3, "ids": np.array([29, 3, 8]), "mask": np.array([False, False]),
    "n.0.b": np.array([5, 6], BF16), "n.1.b": np.array([7, 8], BF16),
}  # fmt: skip
EXTRA = {**B, "head": np.array([9, 9], np.float32)}
"""Like B, with a tensor more."""


def quoted(hint: str) -> list[str]:
    """What a hint says between backticks."""
    return re.findall(r"`([^`]*)`", hint)


def step(plan: Plan, at: int = 0) -> tuple[str, Any]:
    """The op of a step, and its payload."""
    ((name, payload),) = plan["transforms"][at].items()
    return name, payload


Mend = Callable[[Plan, str], Plan]


@dataclass(frozen=True)
class Case:
    """A plan on `a` and `b`, the code of what is wrong with it, how its hint is followed, and the output.

    `expect` holds the tensors that differ from those of `a` (or of `base`); None: not there.
    """

    name: str
    code: str
    transforms: list[Any]
    mend: Mend
    expect: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    b: Arrays = field(default_factory=lambda: B)
    a: Arrays = field(default_factory=lambda: A)
    base: Arrays | None = None
    output: Mapping[str, Any] = field(default_factory=lambda: {"path": "out.safetensors", "alias": "a"})
    at_run: bool = False
    """Only data tell that it is wrong."""
    note: bool = False
    """It is no mistake: the plan runs, and says so."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    world: Callable[[], object] = lambda: None
    """What else is in the folder of the plan."""
    of: str = ""
    """The file of the hint, where several have one of these words."""


# --- Ways to follow a hint --------------------------------------------------------------------------------------------


def key(name: str, number: int = 0, at: int = 0) -> Mend:
    """Give a key of a step what stands between the backticks."""

    def mend(plan: Plan, hint: str) -> Plan:
        parts = name.split(".")
        below = step(plan, at)[1]
        for part in parts[:-1]:
            below = below[part]
        below[parts[-1]] = yaml.safe_load(quoted(hint)[number])
        return plan

    return mend


def add(number: int = 0, at: int = 0) -> Mend:
    """Add the key that stands between the backticks to a step."""

    def mend(plan: Plan, hint: str) -> Plan:
        step(plan, at)[1].update(yaml.safe_load(quoted(hint)[number]))
        return plan

    return mend


def before(target: str, number: int = 0) -> Mend:
    """Do the step that stands between the backticks first, for the tensor that `...` stands for."""

    def mend(plan: Plan, hint: str) -> Plan:
        made = yaml.safe_load(quoted(hint)[number].replace("...", repr(target), 1))
        plan["transforms"].insert(0, made)
        return plan

    return mend


def casts(plan: Plan, hint: str) -> Plan:
    """Do the casts that the hint writes first; each names what it casts."""
    plan["transforms"][:0] = map(yaml.safe_load, quoted(hint))
    return plan


def chosen_and_copied(plan: Plan, hint: str) -> Plan:
    """Choose by kind, and copy the rest by the steps that the hint writes."""
    reference, name, *steps = quoted(hint)
    step(plan, 1)[1]["from"][name] = yaml.safe_load(reference)
    plan["transforms"] += map(yaml.safe_load, steps)
    return plan


def chosen(plan: Plan, hint: str, name: str) -> Plan:
    """Choose by kind, and copy the rest by the steps that the hint writes."""
    reference, _, *steps = quoted(hint)
    step(plan)[1][name] = yaml.safe_load(reference)
    plan["transforms"] += map(yaml.safe_load, steps)
    return plan


def inserted_at(plan: Plan, at: int, made: Any) -> Plan:
    """Do a step before another one."""
    plan["transforms"].insert(at, made)
    return plan


def inserted(*steps: Any, says: str, instead: bool = False) -> Mend:
    """Do steps of one's own first (or `instead` of all), as the hint says in words."""

    def mend(plan: Plan, hint: str) -> Plan:
        assert says in hint
        plan["transforms"][: None if instead else 0] = deepcopy(list(steps))
        return plan

    return mend


def changed(change: Callable[[Plan], object], *, says: str) -> Mend:
    """Change the plan as the hint says in words."""

    def mend(plan: Plan, hint: str) -> Plan:
        assert says in hint
        change(plan)
        return plan

    return mend


def in_output(number: int = 0) -> Mend:
    """Add the key between the backticks to the output."""

    def mend(plan: Plan, hint: str) -> Plan:
        plan["output"].update(yaml.safe_load(quoted(hint)[number]))
        return plan

    return mend


def whole_output(plan: Plan, hint: str) -> Plan:
    """Write the output as the hint writes it."""
    return {**plan, **yaml.safe_load(quoted(hint)[0])}


# --- The cases --------------------------------------------------------------------------------------------------------


def average(b: Any = r"b::\g<0>", **more: Any) -> dict[str, Any]:
    return {"compute": {"from": {"a": "a::.*", "b": b}, "expr": "(a + b) / 2", **more}}


def mean(name: str) -> np.ndarray:
    """The average of a tensor of both, by numpy."""
    return ((A[name].astype(np.float64) + B[name].astype(np.float64)) / 2).astype(A[name].dtype)


FLOATS = ("w", "v", "n.0.b", "n.1.b")
MEANS = {name: mean(name) for name in FLOATS}
HALVES = {name: (A[name].astype(np.float64) / 2).astype(A[name].dtype) for name in FLOATS}

CASES = [
    # kinds of dtypes
    Case("averaging with integers among the tensors", "dtypes-differ", [average()], key("from.a"), MEANS),
    Case(
        "averaging into another alias", "dtypes-differ",
        [{"prefixes": {"mode": "add", "alias": "c"}}, average(to=r"c::\g<0>")], chosen_and_copied, MEANS,
        output={"path": "out.safetensors", "alias": "c"},
    ),
    Case(
        "averaging integers alone", "dtypes-differ", [{"compute": {"from": {"a": "a::ids"}, "expr": "a / 2"}}], add(),
        {"ids": A["ids"] / 2},
    ),
    Case(
        "mixing in place", "dtype-unsupported", [{"lerp_": {"from": "b::.*", "to": r"a::\g<0>", "t": 0.5}}],
        key("from"), MEANS,
    ),
    Case("scaling all with booleans among them", "dtype-unsupported", [{"scale_": {"target": "a::.*", "by": 0.5}}],
         key("target"), HALVES),
    Case(
        "scaling an integer by a half", "refused-by-values", [{"scale_": {"target": "a::(w|ids)", "by": 0.5}}],
        key("target"), {"w": HALVES["w"]}, at_run=True,
    ),
    Case(
        "dividing integers that leave a rest", "refused-by-values",
        [{"divide_": {"from": "b::(w|ids)", "to": r"a::\g<0>"}}], key("from"),
        {"w": (A["w"] / B["w"]).astype(F16)}, at_run=True,
    ),
    Case(
        "bounds between whole numbers", "inexact", [{"clamp_": {"target": "a::(w|ids|v)", "max": 1.5}}], key("target"),
        {"w": np.minimum(A["w"], F16(1.5)), "v": np.minimum(A["v"], np.float32(1.5))},
    ),
    Case(
        "reducing all", "dtype-unsupported", [{"reduce": {"from": "a::(v|ids)", "to": r"a::\1.mean", "mode": "mean"}}],
        lambda plan, hint: chosen(plan, hint, "from"), {"v.mean": A["v"].mean(), "ids.mean": A["ids"]},
    ),
    Case(
        "reducing an integer", "dtype-unsupported", [{"reduce": {"from": "a::ids", "to": "a::m", "mode": "mean"}}],
        casts, {"m": np.array(13.0), "ids": A["ids"].astype(np.float64)},
    ),
    Case(
        "mixing integers alone", "dtype-unsupported",
        [{"einsum": {"from_a": "a::ids", "equation": "i->", "to": "a::m"}}], casts,
        {"m": np.array(39.0), "ids": A["ids"].astype(np.float64)},
    ),
    Case(
        "subtracting booleans", "dtype-unsupported", [{"subtract_": {"from": "b::mask", "to": "a::mask"}}],
        casts,
        {"mask": np.array([1, 0], np.int8)},
    ),
    # dtypes that differ
    Case(
        "adding what is narrower", "dtypes-differ",
        [{"add_": {"from": "b::w", "to": "a::w"}}], casts, {"w": A["w"].astype(np.float32) * 2},
        a={**A, "w": A["w"].astype(np.float32)}, b={**B, "w": A["w"]},
    ),
    Case(
        "adding floats of which none holds the other", "dtypes-differ", [{"add_": {"from": "b::w", "to": "a::w"}}],
        casts,
        {"w": (A["w"].astype(np.float32) + np.float32(1))},
        b={**B, "w": np.ones(4, BF16)},
    ),
    Case(
        "joining what is narrower", "dtypes-differ", [{"concat": {"from": ["a::n.0.b", "a::u"], "to": "a::j"}}],
        before("a::n.0.b"), {"j": np.array([1, 2, 9], np.float32), "n.0.b": A["n.0.b"].astype(np.float32)},
        a={**A, "u": np.array([9], np.float32)},
    ),
    Case(
        "a constant that an integer cannot hold", "fill-range",
        [{"fill_": {"target": "a::u", "mode": "constant", "value": 300}}],
        inserted({"cast_": {"target": "a::u", "to": "int16"}}, says="cast the tensor to a wider dtype first"),
        {"u": np.array([300, 300], np.int16)}, a={**A, "u": np.array([1, 2], np.uint8)},
    ),
    Case(
        "a constant between whole numbers", "inexact",
        [{"fill_": {"target": "a::ids", "mode": "constant", "value": 0.5}}],
        changed(lambda p: step(p)[1].update(value=1), says="Give whole numbers"), {"ids": np.ones(3, np.int64)},
    ),
    Case(
        "values between whole numbers, cast", "inexact",
        [{"fill_": {"target": "a::ids", "mode": "tensor", "values": [1, 0.5, 2]}}],
        inserted({"cast_": {"target": "a::ids", "to": "float32"}}, says="or cast to a floating dtype first"),
        {"ids": np.array([1, 0.5, 2], np.float32)},
    ),
    Case(
        "a constant between whole numbers, for all", "inexact",
        [{"fill_": {"target": "a::(w|ids|v)", "mode": "constant", "value": 0.5}}], key("target"),
        {"w": np.full(4, 0.5, F16), "v": np.full((2, 2), 0.5, np.float32)},
    ),
    Case(
        "a margin between whole numbers", "inexact", [{"pad_": {"target": "a::ids", "width": [[0, 1]], "value": 0.5}}],
        changed(lambda p: step(p)[1].update(value=7), says="Give whole numbers"), {"ids": np.append(A["ids"], 7)},
    ),
    Case(
        "a constant that a float rounds to nothing", "fill-range",
        [{"fill_": {"target": "a::w", "mode": "constant", "value": 1e-9}}],
        inserted({"cast_": {"target": "a::w", "to": "float32"}}, says="cast the tensor to a wider dtype first"),
        {"w": np.full(4, 1e-9, np.float32)},
    ),
    Case(
        "a boolean that is neither", "inexact",
        [{"fill_": {"target": "a::mask", "mode": "constant", "value": 0.5}}],
        changed(lambda p: step(p)[1].update(value=1), says="Use 0 for false and 1 for true"),
        {"mask": np.ones(2, bool)},
    ),
    Case(
        "a number of more digits than a number has", "value-type",
        [{"fill_": {"target": "a::ids", "mode": "constant", "value": 2**53 + 1}}], key("value"),
        {"ids": np.full(3, 2**53)},
    ),
    Case(
        "integers of a computed average, cut off", "cast-truncates",
        [{"compute": {"from": {"a": "a::ids", "b": r"b::\g<0>"}, "expr": "0.75 * a + 0.25 * b", "dtype": "int64"}}],
        lambda plan, hint: changed(lambda p: step(p)[1].update(expr=quoted(hint)[0]), says="To round to nearest")(
            plan, hint
        ),
        {"ids": np.array([29, 3, 7])}, a={"ids": np.array([29, 3, 7])}, b={"ids": np.array([28, 3, 7])}, note=True,
    ),
    Case(
        "weights as they are, as integers", "cast-truncates",
        [{"compute": {"from": {"v": "a::v"}, "expr": "v", "to": "a::q", "dtype": "int8"}}],
        changed(lambda p: step(p)[1].update(expr="round(v * 30)"), says="Scale weights in the expression"),
        {"q": np.array([[30, 60], [90, 120]], np.int8)}, note=True,
    ),
    # sets that do not pair up
    Case("a tensor of one model alone, kept", "unmatched", [average(b={"name": r"\g<0>", "alias": "b"})], add(0),
         {**{n: mean(n) for n in ("w", "v")}, "head": EXTRA["head"]},
         a={n: A[n] for n in ("w", "v")}, b={n: EXTRA[n] for n in ("w", "v", "head")}),
    Case("a tensor of one model alone, left out", "unmatched", [average()], add(1),
         {n: mean(n) for n in ("w", "v")},
         a={n: A[n] for n in ("w", "v")}, b={n: EXTRA[n] for n in ("w", "v", "head")}),
    Case("a difference, listed", "unmatched", [{"diff": {"left": "a::.*", "right": "b::.*", "unmatched": "error"}}],
         add(0), b=EXTRA),
    Case("a difference, left out", "unmatched", [{"diff": {"left": "a::.*", "right": "b::.*", "unmatched": "error"}}],
         add(1), b=EXTRA),
    Case(
        "a constant that a float cannot hold", "fill-range",
        [{"fill_": {"target": "a::w", "mode": "constant", "value": 1e6}}],
        inserted({"cast_": {"target": "a::w", "to": "float32"}}, says="cast the tensor to a wider dtype first"),
        {"w": np.full(4, 1e6, np.float32)},
    ),
    Case(
        "a bound between whole numbers, of integers alone", "inexact", [{"clamp_": {"target": "a::ids", "max": 7.5}}],
        changed(lambda p: step(p)[1].update(max=7), says="Use a whole number"), {"ids": np.minimum(A["ids"], 7)},
    ),
    Case(
        "a float of another dtype in a slice", "dest-differs", [{"assign": {"from": "b::v", "to": "a::f::[:, :]"}}],
        inserted({"cast_": {"target": "b::v", "to": "float64"}}, says="cast the source first"),
        {"f": B["v"].astype(np.float64)}, a={**A, "f": np.zeros((2, 2))},
    ),
    Case("a match without a tensor to fill", "tensor-missing", [{"assign": {"from": "b::(w|head)", "to": r"a::\1"}}],
         changed(lambda p: step(p)[1].update(extra="ignore"), says="or `extra: ignore` to leave it out"), {"w": B["w"]},
         b=EXTRA),
    Case("no match with a tensor to fill", "unmatched",
         [{"assign": {"from": "b::(w)", "to": r"a::x\1", "extra": "ignore"}}],
         changed(lambda p: step(p)[1].update(to=r"a::\1"), says="Compare the names on both sides."), {"w": B["w"]}),
    Case("a tensor that gets no value", "unmatched",
         [{"assign": {"from": "b::(.*)", "to": r"a::\1", "missing": "error"}}],
         changed(lambda p: step(p)[1].update(missing="keep"), says="`missing: keep` leaves such tensors as they are."),
         {"w": B["w"]}, b={"w": B["w"]}),
    Case(
        "integers and floats that no dtype holds", "dtypes-differ", [{"add_": {"from": "b::(w|v)", "to": r"a::\1"}}],
        changed(lambda p: step(p)[1].update({"from": "b::(v)"}), says="Leave such tensors out"),
        {"v": A["v"] + B["v"]}, a={**A, "w": np.arange(4)},
    ),
    Case(
        "a kept tensor whose place is not clear", "unmatched",
        [{"add_": {"from": "b::(w|head)::[:2]", "to": r"a::\1::[:2]", "unmatched": "keep"}}],
        changed(lambda p: (step(p)[1].update(unmatched="drop"),
                           p["transforms"].append({"copy": {"from": "b::head", "to": "a::head"}})),
                says="Copy such tensors in a step of their own, and say `unmatched: drop` here."),
        {"w": np.concatenate([A["w"][:2] + B["w"][:2], A["w"][2:]]), "head": EXTRA["head"]}, b=EXTRA,
    ),
    Case(
        "an alias renamed to one that is there", "alias-exists",
        [{"prefixes": {"mode": "rename", "from": "a", "to": "b"}}],
        changed(lambda p: (step(p)[1].update(to="c"), p["output"].update(alias="c")), says="Choose another name"),
    ),
    Case(
        "an output of nothing", "output-empty", [{"delete": {"target": "a::.*"}}],
        changed(lambda p: p["output"].update(alias="b"), says="Write another alias (`alias: NAME`)"), base=B,
    ),
    Case(
        "a slice with more parts than axes", "slice-range", [{"copy": {"from": "a::w::[0, 1]", "to": "a::x"}}],
        changed(lambda p: step(p)[1].update({"from": "a::w::[0]"}), says="Leave out the last 1"), {"x": A["w"][0]},
    ),
    Case(
        "adding what is larger", "shapes-differ", [{"add_": {"from": "b::big", "to": "a::w"}}],
        changed(lambda p: step(p)[1].update({"from": "b::big::[:4]"}), says="Slice the larger one"),
        {"w": A["w"] + F16(1)}, b={**B, "big": np.ones(6, F16)},
    ),
    Case(
        "booleans multiplied as matrices", "dtype-unsupported",
        [{"matmul": {"from_a": "a::mask", "from_b": "b::mask", "to": "a::m"}}],
        casts,
        {"m": np.array(0, np.float32), "mask": A["mask"].astype(np.float32)},
    ),
    Case(
        "random values for all", "dtype-unsupported",
        [{"fill_": {"target": "a::(ids|w)", "mode": "rand", "distribution": "normal", "mean": 5, "std": 1e-30}}],
        key("target"), {"w": np.full(4, 5, F16)},
    ),
    Case(
        "a factorization of all matrices", "dtype-unsupported",
        [{"phlora_": {"target": "a::(v|q)", "rank": 2}}], key("target"), {},
        a={**A, "v": np.zeros((2, 2), np.float32), "q": np.array([[1, 2], [3, 4]])},
    ),
    Case(
        "integers multiplied and summed", "dtype-unsupported",
        [{"einsum": {"from_a": "a::ids", "equation": "i->", "to": "a::m"}}], casts,
        {"m": np.array(2.0**40 + 1), "ids": np.array([2.0**40, 1])}, a={**A, "ids": np.array([2**40, 1])},
    ),
    # names that are there
    Case(
        "a name that is taken, moved away", "dest-exists", [{"copy": {"from": "a::w", "to": "a::ids"}}],
        inserted({"move": {"from": "a::ids", "to": "a::old"}}, says="Delete or move it first"),
        {"ids": A["w"], "old": A["ids"]},
    ),
    Case(
        "a name that is taken, deleted", "dest-exists", [{"copy": {"from": "a::w", "to": "a::ids"}}],
        inserted({"delete": {"target": "a::ids"}}, says="Delete or move it first"), {"ids": A["w"]},
    ),
    Case(
        "a name that is taken, another chosen", "dest-exists", [{"copy": {"from": "a::w", "to": "a::ids"}}],
        changed(lambda p: step(p)[1].update(to="a::w2"), says="write to another name"), {"w2": A["w"]},
    ),
    Case(
        "a move onto a name", "dest-exists", [{"move": {"from": "a::w", "to": "a::ids"}}],
        inserted({"move": {"from": "a::ids", "to": "a::old"}}, says="Delete or move it first."),
        {"ids": A["w"], "old": A["ids"], "w": None},
    ),
    Case(
        "an alias that is there", "alias-exists", [{"load": {"path": "b.safetensors", "alias": "a"}}], 
        changed(lambda p: step(p)[1].update(alias="c"), says="`alias: NAME`"),
    ),
    Case(
        "a plan executed twice", "alias-exists", [{"execute": {"plan": {"inputs": ["c::b.safetensors"]}}}] * 2,
        lambda plan, hint: inserted_at(plan, 1, yaml.safe_load(quoted(hint)[1])),
    ),
    Case(
        "names that become one", "names-collide", [{"copy": {"from": r"a::n\.\d\.b", "to": "a::b"}}],
        changed(
            lambda p: step(p)[1].update({"from": r"a::n\.(\d)\.b", "to": r"a::b.\1"}), says="`\\1` in the template"
        ),
        {"b.0": A["n.0.b"], "b.1": A["n.1.b"]},
    ),
    # outputs
    Case("an output that is there", "io-output", [{"scale_": {"target": "a::w", "by": 2}}], in_output(),
         {"w": A["w"] * F16(2)}, output={"path": "there.safetensors", "alias": "a"}),
    Case("an output of two", "output-ambiguous",
         [{"scale_": {"target": "a::w", "by": 2}}, {"scale_": {"target": "b::w", "by": 2}}], whole_output,
         {"w": A["w"] * F16(2)}, output={"path": "out.safetensors"}),
    Case("two saves to one path", "output-twice",
         [{"save": {"path": "s.safetensors", "alias": "a"}}, {"save": {"path": "s.safetensors", "alias": "b"}}],
         add(0, at=1), of="lower/fold.py"),
    Case("an output to the path of a save", "output-twice", [{"save": {"path": "out.safetensors", "alias": "b"}}],
         in_output(), of="lower/outputs.py"),
    Case("a save without its alias", "save-ambiguous", [{"save": {"path": "s.safetensors"}}],
         lambda plan, hint: add()(plan, hint.replace("NAME", "b")), of="ops/names.py"),
    Case("a layout without its alias", "layout-alias", [{"layout": {"name": "flax"}}],
         lambda plan, hint: add()(plan, hint.replace("NAME", "b")), of="ops/_layouts.py"),
    Case("a folder with a dot", "output-path", [{"scale_": {"target": "a::w", "by": 2}}],
         in_output(), {"w": A["w"] * F16(2)}, output={"path": "out.v2", "alias": "a"}),
    Case("a dtype that safetensors has not", "dtype-unsavable", [{"scale_": {"target": "a::w", "by": 2}}],
         changed(lambda p: p["output"].update(path="out.npz"), says="Write .npz"),
         {"w": A["w"] * F16(2)}, a={"w": A["w"], "z": np.array([1 + 1e-12j])}),
]  # fmt: skip
