"""Mistakes in the keys of one op, what their hints say to do, and what must come out of it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.hints.cases import BF16, EXTRA, F16, A, B, Case, Mend, Plan, add, changed, inserted, quoted, step

RAMP = np.arange(6, dtype=np.float32).reshape(2, 3)
WITH_RAMP = {**A, "m": RAMP}


def put(says: str, at: int = 0, **keys: Any) -> Mend:
    """Give keys of a step other values (None: leave the key out), as the hint says in words. `from_`: `from`."""

    def change(plan: Plan) -> None:
        payload = step(plan, at)[1]
        for name, value in keys.items():
            name = name.rstrip("_")
            payload.pop(name, None)
            if value is not None:
                payload[name] = value

    return changed(change, says=says)


def steps(says: str, *written: Any) -> Mend:
    """Write other steps instead of all, as the hint says in words."""
    return changed(lambda plan: plan["transforms"].__setitem__(slice(None), list(written)), says=says)


def asserted(says: str, **payload: Any) -> Mend:
    """Write an assert otherwise, as the hint says in words."""
    return steps(says, {"assert": payload})


def range_of(hint: str) -> list[int]:
    """The numbers that a hint names."""
    return [int(number) for number in re.findall(r"-?\d+", hint)]


def last_valid(key: str, *, listed: bool = False) -> Mend:
    """Give a key the last number that the hint says to be valid."""

    def mend(plan: Plan, hint: str) -> Plan:
        last = range_of(hint)[-1]
        step(plan)[1][key] = [last] if listed else last
        return plan

    return mend


SUMMED = {"compute": {"from": {"v": "a::v"}, "expr": "sum_over(sum(v))"}}

OPS = [
    # constants and random numbers
    Case("rows of unequal lengths", "fill-values",
         [{"fill_": {"target": "a::v", "mode": "tensor", "values": [[1, 2], [3]]}}],
         put("Give every row as many numbers as the first one.", values=[[1, 2], [3, 4]]),
         {"v": np.array([[1, 2], [3, 4]], np.float32)}),
    Case("a constant that is text", "fill-values",
         [{"fill_": {"target": "a::v", "mode": "tensor", "values": [["x", "y"]]}}],
         put("Give a number, or nested lists of numbers.", values=[[7, 8]]),
         {"v": np.array([[7, 8], [7, 8]], np.float32)}),
    Case("values of another shape", "fill-shape",
         [{"fill_": {"target": "a::v", "mode": "tensor", "values": [1, 2, 3]}}],
         put("each size must be 1 or that of the tensor", values=[1, 2]),
         {"v": np.array([[1, 2], [1, 2]], np.float32)}),
    Case("random numbers between nothing", "rand-range",
         [{"fill_": {"target": "a::w", "mode": "rand", "low": 3, "high": 3}}],
         put("Values are drawn from low up to", high=3.0001), {"w": np.full(4, 3, F16)}),  # which float16 rounds to 3
    Case("random numbers that are all one", "rand-range",
         [{"fill_": {"target": "a::v", "mode": "rand", "distribution": "normal", "mean": 3, "std": 0}}],
         lambda plan, hint: put("", distribution=None, mean=None, std=None, value=3)(add()(plan, hint), hint),
         {"v": np.full((2, 2), 3, np.float32)}),
    Case("a value beside random numbers", "key-idle",
         [{"fill_": {"target": "a::v", "mode": "rand", "value": 3}}], add(), {"v": np.full((2, 2), 3, np.float32)},
         note=True),
    Case("a value beside a table of values", "key-idle",
         [{"fill_": {"target": "a::v", "mode": "tensor", "values": [5], "value": 3}}],
         put("or leave it out", value=None), {"v": np.full((2, 2), 5, np.float32)}, note=True),
    # factors, axes and sizes
    Case("a factorization of what is no matrix", "not-a-matrix", [{"phlora_": {"target": "a::(v|w)", "rank": 2}}],
         put("Narrow the pattern.", target="a::(v)"), {}, a={**A, "v": np.zeros((2, 2), np.float32)},
         of="numerics/math.py"),
    Case("a full factorization by a tolerance", "value-type",
         [{"phlora_": {"target": "a::v", "rank": 2, "tol": 0}}],
         lambda plan, hint: put("", tol=None)(add()(plan, hint), hint), {},
         a={**A, "v": np.zeros((2, 2), np.float32)}),
    Case("two factors of one name", "names-collide",
         [{"phlora": {"target": "a::(v)", "target_a": r"a::\1.f", "target_b": r"a::\1.f", "rank": 1}}],
         lambda plan, hint: put("different endings", target_a="a::\\1" + endings(hint)[0],
                                target_b="a::\\1" + endings(hint)[1])(plan, hint),
         {"v": None, "v.lora_A": np.zeros((1, 2), np.float32), "v.lora_B": np.zeros((2, 1), np.float32)},
         a={**A, "v": np.zeros((2, 2), np.float32)}),
    Case("matrices that do not fit", "shapes-differ",
         [{"matmul": {"from_a": "a::m", "from_b": "a::m", "to": "a::p"}}],
         inserted({"transpose": {"from": "a::m", "to": "a::t"}},
                  {"matmul": {"from_a": "a::m", "from_b": "a::t", "to": "a::p"}}, {"delete": {"target": "a::t"}},
                  says="`transpose` swaps the two", instead=True),
         {"p": RAMP @ RAMP.T}, a=WITH_RAMP),
    Case("an equation with dots", "einsum-equation",
         [{"einsum": {"from_a": "a::m", "equation": "...j->...", "to": "a::s"}}],
         put("Give each axis a letter", equation="ij->i"), {"s": RAMP.sum(1)}, a=WITH_RAMP),
    Case("an equation of more operands", "einsum-equation",
         [{"einsum": {"from_a": "a::m", "equation": "ij,ij->i", "to": "a::s"}}],
         put("of two `from_a` and `from_b`", from_b="a::m"), {"s": (RAMP * RAMP).sum(1)}, a=WITH_RAMP),
    Case("an equation of fewer axes", "einsum-equation",
         [{"einsum": {"from_a": "a::m", "equation": "i->i", "to": "a::s"}}],
         put("Write one letter for each axis.", equation="ij->i"), {"s": RAMP.sum(1)}, a=WITH_RAMP),
    Case("a letter of two sizes", "shapes-differ",
         [{"einsum": {"from_a": "a::m", "from_b": "a::m", "equation": "ij,jk->ik", "to": "a::s"}}],
         put("Axes with one letter have one size.", equation="ij,kj->ik"), {"s": RAMP @ RAMP.T}, a=WITH_RAMP),
    Case("a letter from nowhere", "einsum-equation",
         [{"einsum": {"from_a": "a::m", "equation": "ij->k", "to": "a::s"}}],
         put("Each axis of the result is one of the operands'", equation="ij->i"), {"s": RAMP.sum(1)}, a=WITH_RAMP),
    Case("an axis that comes twice", "axis-range",
         [{"reduce": {"from": "a::m", "to": "a::s", "mode": "sum", "dim": [1, -1]}}],
         put("Name each once.", dim=[1]), {"s": RAMP.sum(1)}, a=WITH_RAMP),
    Case("the largest of nothing", "no-elements",
         [{"reduce": {"from": "a::(m|e)", "to": r"a::\1.max", "mode": "max"}}],
         put("Narrow the pattern.", from_="a::(m)"), {"m.max": RAMP.max()},
         a={**WITH_RAMP, "e": np.zeros(0, np.float32)}, of="ops/reduce.py"),
    Case("an axis that is not there", "axis-range",
         [{"reduce": {"from": "a::m", "to": "a::s", "mode": "sum", "dim": 2}}], last_valid("dim"),
         {"s": RAMP.sum(1)}, a=WITH_RAMP),
    Case("an index that is not there", "index-range",
         [{"take": {"from": "a::m", "to": "a::s", "indices": [2]}}], last_valid("indices", listed=True),
         {"s": RAMP[1:]}, a=WITH_RAMP),
    Case("an index of an empty axis", "index-range",
         [{"take": {"from": "a::e", "to": "a::s", "indices": [0], "dim": 1}}],
         put("That axis is empty", indices=[1], dim=0), {"s": np.zeros((1, 0), np.float32)},
         a={**A, "e": np.zeros((2, 0), np.float32)}),
    Case("two open sizes", "reshape-shape", [{"reshape_": {"target": "a::m", "shape": [-1, -1]}}],
         put("Leave at most one size open", shape=[3, -1]), {"m": RAMP.reshape(3, 2)}, a=WITH_RAMP),
    Case("sizes that hold other elements", "reshape-size", [{"reshape_": {"target": "a::m", "shape": [4, 2]}}],
         put("one size may be -1 and is then worked out", shape=[-1, 2]), {"m": RAMP.reshape(3, 2)}, a=WITH_RAMP),
    Case("an order that leaves an axis out", "permute-order",
         [{"permute": {"from": "a::t", "to": "a::u", "order": [1, 2]}}],
         put("axis `i` of the result is axis `order[i]` of the source", order=[1, 2, 0]),
         {"u": np.transpose(np.arange(24, dtype=np.int8).reshape(2, 3, 4), (1, 2, 0))},
         a={**A, "t": np.arange(24, dtype=np.int8).reshape(2, 3, 4)}),
    Case("a vector transposed with the matrices", "axis-range", [{"transpose_": {"target": "a::(w|m)"}}],
         put("Narrow the pattern", target="a::(m)"), {"m": RAMP.T}, a=WITH_RAMP),
    Case("a vector transposed", "axis-range", [{"transpose_": {"target": "a::w"}}],
         inserted({"reshape_": {"target": "a::w", "shape": [1, 4]}}, says="reshape it to two axes first"),
         {"w": A["w"].reshape(4, 1)}),
    Case("an axis swapped with itself", "axis-range", [{"transpose_": {"target": "a::m", "axes": [1, -1]}}],
         put("Name two different ones.", axes=[0, 1]), {"m": RAMP.T}, a=WITH_RAMP),
    Case("copies beyond number", "tensor-too-large",
         [{"repeat": {"from": "a::w", "to": "a::r", "times": 10**12, "mode": "each"}}], put("Lower `times`.", times=2),
         {"r": np.repeat(A["w"], 2)}),
    Case("a width for one axis of two", "pad-axes", [{"pad_": {"target": "a::m", "width": [[0, 1]]}}],
         put("0 in `width`", width=[[0, 1], 0]), {"m": np.pad(RAMP, ((0, 1), (0, 0)))}, a=WITH_RAMP),
    Case("a shape for one axis of two", "pad-axes", [{"pad_": {"target": "a::m", "shape": [3]}}],
         put("-1 in `shape`", shape=[3, -1]), {"m": np.pad(RAMP, ((0, 1), (0, 0)))}, a=WITH_RAMP),
    Case("a grid of one axis for a table of two", "resize-shape",
         [{"resize_": {"target": "a::m", "shape": [3], "method": "nearest"}}], put("-1 keeps it", shape=[3, -1]),
         {"m": RAMP[[0, 1, 1]]}, a=WITH_RAMP),
    Case("a grid of no rows", "resize-shape", [{"resize_": {"target": "a::m", "shape": [0, -1], "method": "nearest"}}],
         put("sizes of at least 1", shape=[1, -1]), {"m": RAMP[1:]}, a=WITH_RAMP),
    Case("whole numbers between whole numbers", "dtype-unsupported",
         [{"resize_": {"target": "a::t", "shape": [4, -1], "method": "bilinear"}}],
         put("`method: nearest` copies elements of any dtype", method="nearest"),
         {"t": np.arange(6, dtype=np.int8).reshape(2, 3).repeat(2, 0)},
         a={**A, "t": np.arange(6, dtype=np.int8).reshape(2, 3)}),
    Case("a padding to less", "pad-shape", [{"pad_": {"target": "a::m", "shape": [1, -1]}}],
         lambda plan, hint: steps("Padding only adds", {quoted(hint)[0]: {
             "from": "a::m" + quoted(hint)[1].replace("n", "1"), "to": "a::s"}})(plan, hint),
         {"s": RAMP[:1]}, a=WITH_RAMP),
    Case("a padding by nothing said", "pad-keys", [{"pad_": {"target": "a::m"}}],
         put("`shape: [50304, -1]` what comes out", shape=[3, -1]), {"m": np.pad(RAMP, ((0, 1), (0, 0)))},
         a=WITH_RAMP),
    Case("a number of several entries", "number-tensor", [{"scale_": {"target": "a::m", "by": "a::w"}}],
         lambda plan, hint: put("Take one element", by=quoted(hint)[0].replace("alias::name", "a::w"))(plan, hint),
         {"m": RAMP * A["w"][0]}, a=WITH_RAMP),
    # joining and cutting
    Case("a join of other sizes", "shapes-differ",
         [{"concat": {"from": ["a::m", "a::v"], "to": "a::j", "dim": 0}}],
         put("The other sizes must agree.", dim=1), {"j": np.concatenate([RAMP, A["v"]], 1)}, a=WITH_RAMP),
    Case("a stack of other shapes", "shapes-differ", [{"stack": {"from": ["a::m", "a::v"], "to": "a::j"}}],
         put("All shapes must be equal.", from_=["a::m", "a::m"]), {"j": np.stack([RAMP, RAMP])}, a=WITH_RAMP),
    Case("sizes that leave a rest", "split-sizes",
         [{"split": {"from": "a::w", "to": ["a::x", "a::y"], "sizes": [1, 2]}}],
         put("The sizes must cover the whole axis", sizes=[1, 3]), {"x": A["w"][:1], "y": A["w"][1:]}),
    Case("a part alone", "split-sizes", [{"split": {"from": "a::w", "to": ["a::x", "a::y"], "sizes": [1, 1]}}],
         steps("`copy` with a slice takes a part of it", {"copy": {"from": "a::w::[:1]", "to": "a::x"}},
               {"copy": {"from": "a::w::[1:2]", "to": "a::y"}}), {"x": A["w"][:1], "y": A["w"][1:2]}),
    Case("a cut of no size", "split-keys", [{"split": {"from": "a::w", "to": ["a::x", "a::y"]}}], add(1),
         {"x": A["w"][:2], "y": A["w"][2:]}),
    Case("fewer names than parts", "split-sizes", [{"split": {"from": "a::w", "to": ["a::x", "a::y"], "parts": 4}}],
         put("Give one name for each part", to=["a::x", "a::y", "a::z", "a::u"]),
         {name: A["w"][i : i + 1] for i, name in enumerate("xyzu")}),
    Case("a million parts", "split-sizes", [{"unstack": {"from": "a::big", "to": "a::p.${i}", "over": "i"}}],
         lambda plan, hint: steps("Cut into fewer, larger parts", {"split": {
             "from": "a::big", "to": ["a::x", "a::y"], "parts": 2}})(plan, hint),
         {"x": np.zeros(2**20, np.int8), "y": np.zeros(2**20, np.int8)}, a={**A, "big": np.zeros(2**21, np.int8)}),
    # expressions and their operands
    Case("an operand that no expression uses", "operand-unused",
         [{"compute": {"from": {"w": "a::w", "v": "a::v"}, "expr": "w * 2"}}],
         put("Leave it out of `from`", from_={"w": "a::w"}), {"w": A["w"] * F16(2)}, note=True),
    Case("an operand called like a key", "expression-name",
         [{"compute": {"from": {"to": "a::w"}, "expr": "to * 2"}}],
         lambda plan, hint: put("letters, digits and _", from_={quoted(hint)[0]: "a::w"},
                                expr=f"{quoted(hint)[0]} * 2")(plan, hint), {"w": A["w"] * F16(2)}),
    Case("complex numbers between bounds", "dtype-unsupported",
         [{"clamp_": {"target": "a::z", "max": 1}}, {"scale_": {"target": "a::w", "by": 2}}],
         changed(lambda p: p["transforms"].pop(0), says="Leave them out"), {"w": A["w"] * F16(2)},
         a={"w": A["w"], "z": np.array([1 + 1j])}, output={"path": "out.npz", "alias": "a"}),
    # values and shapes
    Case("bounds the wrong way round", "clamp-bounds", [{"clamp_": {"target": "a::w", "min": 2, "max": 1}}],
         changed(lambda p: step(p)[1].update(min=1, max=2), says="Swap them."), {"w": np.clip(A["w"], 1, 2)}),
    Case("no bound", "clamp-bounds", [{"clamp_": {"target": "a::w"}}],
         lambda plan, hint: add()(plan, hint.replace("NUMBER", "1")), {"w": np.maximum(A["w"], F16(1))}),
    Case("a constant without its value", "key-missing", [{"fill_": {"target": "a::w", "mode": "constant"}}], add(),
         {"w": np.zeros(4, F16)}),
    Case("parts that do not cover", "split-sizes", [{"split": {"from": "a::w", "to": ["a::x", "a::y"], "parts": 3}}],
         changed(lambda p: (step(p)[1].pop("parts"), step(p)[1].update(sizes=[1, 3])), says="`sizes: [...]`"),
         {"x": A["w"][:1], "y": A["w"][1:]}),
    Case("a result of another shape", "shapes-differ",
         [{"compute": {"from": {"v": "a::v"}, "expr": "sum(v, axis=0)"}}],
         changed(lambda p: step(p)[1].update(to="a::s"), says="`to` may also name"),
         {"s": A["v"].sum(0)}),
    Case("a matrix taken for several", "not-a-matrix", [{"phlora_": {"target": "a::m", "rank": 2, "stacked": True}}],
         put("Leave `stacked` out", stacked=None), {}, a={**A, "m": np.zeros((2, 3), np.float32)}),
    # local names, numbers and sets of expressions
    Case("local names in another order", "expression-name",
         [{"compute": {"from": {"v": "a::v"}, "let": {"y": "x + 1", "x": "v * 2"}, "expr": "x * y"}}],
         put("change their order", let={"x": "v * 2", "y": "x + 1"}), {"v": A["v"] * 2 * (A["v"] * 2 + 1)}),
    Case("a local name for all matches", "expression-name",
         [{"compute": {"from": {"v": "a::v"}, "let": {"s": "sum_over(v)"}, "expr": "v + s"}}],
         lambda plan, hint: put("where the expression itself needs it", let=None,
                                expr=f"v + {quoted(hint)[0]}")(plan, hint), {"v": A["v"] * 2}),
    Case("a name twice", "expression-name",
         [{"compute": {"from": {"v": "a::v"}, "let": {"v": "v * 2"}, "expr": "v + 1"}}],
         put("Choose another name for one of them", let={"u": "v * 2"}, expr="u + 1"), {"v": A["v"] * 2 + 1}),
    Case("a result of all matches in the place of each", "shapes-differ", [SUMMED],
         lambda plan, hint: add()(plan, hint.replace("NAME", "a::s")), {"s": np.array(A["v"].sum(), np.float32)}),
    Case("a number of each match for all", "expression-value",
         [{"compute": {"from": {"b": r"a::n\.(?P<i>\d)\.b"}, "to": "a::s", "expr": "sum_over(sum(b)) * ${i}"}}],
         put("Use it within what ranges over the matches", expr="sum_over(sum(b) * ${i})"),
         {"s": np.array(7, np.float32)}),
    Case("a number of no config", "expression-value",
         [{"compute": {"from": {"v": "a::v"}, "expr": "v * ${config.layers}"}}],
         put("Write the number itself.", expr="v * 3"), {"v": A["v"] * 3}),
    Case("no number of a match", "expression-value",
         [{"compute": {"from": {"b": r"a::n\.(?P<i>\d)\.(?P<p>b)"}, "expr": "b * ${p}"}}],
         put("Write `${i}` for the number that `i` captured", expr="b * ${i}"),
         {"n.0.b": A["n.0.b"] * BF16(0), "n.1.b": A["n.1.b"]}),
    Case("matches of several shapes", "shapes-differ",
         [{"compute": {"from": {"x": "a::[wv]"}, "to": "a::s", "expr": "sum(sum_over(x))"}}],
         put("as `sum_over(sum(x))` does", expr="sum_over(sum(x))"), {"s": np.array(16, np.float32)}),
    Case("matches of several kinds", "dtypes-differ",
         [{"compute": {"from": {"x": "a::(w|ids)"}, "to": "a::s", "expr": "max(concat_over(x))"}}],
         put("`float32(x)`", expr="max(concat_over(float32(x)))"), {"s": np.array(29, np.float32)}),
    Case("values printed without end", "dump-size", [{"dump": {"target": "a::big", "verbosity": "full"}}],
         add(1), a={**A, "big": np.zeros(100_000, np.int8)}),
    # asserts and reports
    Case("a number of axes without its number", "bounds-missing", [{"assert": {"dimensions": {"of": "a::n.*"}}}],
         lambda plan, hint: asserted("", dimensions={"of": "a::n.*", **_mapping(quoted(hint)[1])})(plan, hint)),
    Case("a number of axes that nothing has", "bounds-contradict",
         [{"assert": {"dimensions": {"of": "a::n.*", "ge": 3, "le": 2}}}],
         asserted("Loosen one of them, or leave it out.", dimensions={"of": "a::n.*", "le": 2})),
    Case("reads that are given twice", "bounds-contradict",
         [{"scale_": {"target": "a::w", "by": 2}}, {"assert": {"reads": {"of": "a::w", "at_most": 1, "le": 2}}}],
         changed(lambda p: p["transforms"][1]["assert"]["reads"].pop("le"), says="Leave one of them out."),
         {"w": A["w"] * F16(2)}),
    Case("both what is unchanged and what is not", "unchanged-keys",
         [{"scale_": {"target": "a::w", "by": 2}}, {"assert": {"unchanged": {"of": "a::v", "except": "a::w"}}}],
         changed(lambda p: p["transforms"][1]["assert"]["unchanged"].pop("of"), says="`except` what may have changed"),
         {"w": A["w"] * F16(2)}),
    Case("names of an alias that is not there", "alias-unknown",
         [{"assert": {"same_names": {"left": "c", "right": "b"}}}],
         lambda plan, hint: asserted("or a pattern with its alias", same_names={
             "left": "a", "right": quoted(hint)[0].replace("a::", "b::")})(plan, hint)),
    Case("more names on the right, meant", "unmatched",
         [{"assert": {"equal": {"left": "a::.+", "right": r"b::\g<0>"}}}],
         lambda plan, hint: asserted("", equal={
             "left": "a::.+", "right": r"b::\g<0>", **_mapping(quoted(hint)[0])})(plan, hint),
         b={**A, "head": EXTRA["head"]}, note=True, of="ops/_verdicts.py"),
    Case("keys of another mode", "diff-keys", [{"diff": {"left": "a::.*", "right_alias": "b"}}],
         put("`left` and `right` are patterns", right="b::.*", right_alias=None)),
    Case("aliases in the mode of patterns", "diff-keys", [{"diff": {"left_alias": "a", "right_alias": "b"}}],
         lambda plan, hint: add(2)(plan, hint)),
    Case("sets that share no name", "unmatched",
         [{"diff": {"left": "a::w", "right": "b::v", "unmatched": "drop"}}],
         put("Compare the names on both sides.", right="b::w"), of="ops/difference.py"),
    # steps about aliases, files and plans
    Case("a mode without its keys", "prefixes-keys", [{"prefixes": {"mode": "rename", "alias": "b"}}],
         put("rename with `from` and `to`", alias=None, from_="b", to="c")),
    Case("one tensor of a file of several", "load-one", [{"load": {"path": "b.safetensors", "to": "a::x"}}],
         steps("Load the whole file under an alias and copy what you need.",
               {"load": {"path": "b.safetensors", "alias": "c"}}, {"copy": {"from": "c::w", "to": "a::x"}}),
         {"x": B["w"]}),
    Case("an alias said twice", "load-alias", [{"load": {"path": "b.safetensors", "to": "a::x", "alias": "b"}}],
         put("Say the alias once: in `alias`, or in `to`.", alias=None), {"x": B["w"]}, b={"w": B["w"]}),
    Case("a plan of no step", "execute-empty", [{"execute": {"transforms": []}}],
         put("with a step in it", transforms=[{"scale_": {"target": "a::w", "by": 2}}]), {"w": A["w"] * F16(2)}),
]  # fmt: skip


def endings(hint: str) -> list[str]:
    """What a hint says between quotes."""
    return re.findall(r"'([^']*)'", hint)


def _mapping(text: str) -> dict[str, int]:
    key, _, value = text.partition(": ")
    return {key: int(value) if value.isdigit() else value}  # type: ignore[dict-item]
