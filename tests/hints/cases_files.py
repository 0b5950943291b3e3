"""Mistakes about names, inputs and outputs, what their hints say to do, and what must come out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from tests import checkpoints
from tests.hints.cases import BF16, F16, HALVES, A, B, Case, Mend, add, changed, in_output, inserted, quoted, step
from tests.hints.cases_ops import endings, put, steps

DOUBLE: list[Any] = [{"scale_": {"target": "a::w", "by": 2}}]
DOUBLED = {"w": A["w"] * F16(2)}
EIGHT = np.array([1, 2], ml_dtypes.float8_e4m3fn)
SAFE = {"path": "out.safetensors", "alias": "a"}


def output(says: str, **keys: Any) -> Mend:
    """Give keys of the output other values (None: leave the key out), as the hint says in words."""

    def mend(plan: Any, hint: str) -> Any:
        assert says in hint
        given = {**plan["output"], **keys}
        return {**plan, "output": {key: value for key, value in given.items() if value is not None}}

    return mend


def to(path: str, **keys: Any) -> dict[str, Any]:
    return {"path": path, "alias": "a", **keys}


def folder(name: str, **files: str) -> None:
    """A folder with text files in it; `__` in their names stands for a dot."""
    Path(name).mkdir()
    for file, text in files.items():
        Path(name, file.replace("__", ".")).write_text(text)


def nested(levels: int, steps: list[Any]) -> list[Any]:
    """Steps within as many levels of `execute`."""
    return nested(levels - 1, [{"execute": {"transforms": steps}}]) if levels else steps


def beside() -> None:
    """A checkpoint with a text of one's own beside it."""
    folder("there", thesis__tex="1")
    checkpoints.write("there/model.safetensors", B)


FILES = [
    # references
    Case("a part of a name", "no-match", [{"scale_": {"target": "a::0", "by": 2}}],
         changed(lambda p: step(p)[1].update(target="a::.*0.*"), says="'.*0.*'"),
         {"n.0.b": A["n.0.b"] * BF16(2)}),
    Case("a slice behind one colon", "no-match", [{"scale_": {"target": "a::w:[0:2]", "by": 2}}],
         changed(lambda p: step(p)[1].update(target="a::w::[0:2]"), says="'a::w::[0:2]'"),
         {"w": np.array([0, 2, 2, 3], F16)}),
    Case("a kind that is another word elsewhere", "ref-kind",
         [{"scale_": {"target": {"alias": "a", "name": ".*", "kind": "floating"}, "by": 0.5}}],
         changed(lambda p: step(p)[1]["target"].update(kind="float"), says="Kinds: float,"), HALVES),
    Case("a kind of what is made", "kind-not-allowed",
         [{"copy": {"from": "a::(w|ids)", "to": {"alias": "a", "name": r"\1.c", "kind": "float"}}}],
         changed(lambda p: step(p)[1].update({"from": {"alias": "a", "name": "(w|ids)", "kind": "float"},
                                              "to": r"a::\1.c"}), says="Write it in the reference that is matched."),
         {"w.c": A["w"]}),
    Case("a slice of what is deleted", "slice-not-allowed", [{"move": {"from": "a::w::[:2]", "to": "a::u"}}],
         changed(lambda p: p["transforms"].__setitem__(slice(None), [{"copy": {"from": "a::w::[:2]", "to": "a::u"}}]),
                 says="Copy the slice to a name of its own first."), {"u": A["w"][:2]}),
    Case("no alias among two", "ref-no-alias", [{"scale_": {"target": "w", "by": 2}}],
         changed(lambda p: step(p)[1].update(target="a::w"), says="input is meant: 'a::w' or 'b::w'."), DOUBLED),
    Case("a pattern for one tensor", "many-matches", [{"concat": {"from": ["a::n.*b", "a::n.1.b"], "to": "a::j"}}],
         changed(lambda p: step(p)[1].update({"from": ["a::n.0.b", "a::n.1.b"]}), says="Name one of them in full"),
         {"j": np.array([1, 2, 3, 4], BF16)}),
    Case("an alias before there is any", "alias-unknown", [{"scale_": {"target": "a::w", "by": 2}}],
         inserted({"load": {"path": "a.safetensors", "alias": "a"}}, says="`load` and `prefixes` make aliases"),
         DOUBLED, plan={"inputs": []}, output={"path": "out.safetensors"}),
    Case("a slice without brackets", "alias-unknown", [{"scale_": {"target": "w::0:2", "by": 2}}],
         lambda plan, hint: put("stands in brackets", target=endings(hint)[1].replace("[0:4]", "[0:2]"))(plan, hint),
         {"w": np.array([0, 2, 2, 3], F16)}),
    Case("a slice with one colon of the right name", "no-match", [{"scale_": {"target": "a::w[0:2]", "by": 2}}],
         lambda plan, hint: put("A slice is set off by '::'", target=endings(hint)[1])(plan, hint),
         {"w": np.array([0, 2, 2, 3], F16)}),
    Case("an alias with colons", "value-type", [{"prefixes": {"mode": "add", "alias": "m::"}}],
         lambda plan, hint: put("Write the alias alone", **yaml.safe_load(quoted(hint)[0]))(plan, hint)),
    Case("a name with brackets", "no-match", [{"scale_": {"target": "a::n.x[0]", "by": 2}}],
         lambda plan, hint: put("need a backslash", target=endings(hint)[0])(plan, hint),
         {"n.x[0]": np.array([2], F16)}, a=A | {"n.x[0]": np.array([1], F16)}),
    Case("a part of a name with brackets", "no-match", [{"scale_": {"target": "a::x[0]", "by": 2}}],
         lambda plan, hint: put("for names that contain it", target="a::" + endings(hint)[0])(plan, hint),
         {"n.x[0]": np.array([2], F16)}, a=A | {"n.x[0]": np.array([1], F16)}),
    Case("a list of names", "no-match", [{"scale_": {"target": ["w", "v"], "by": 2}}],
         put("for several names write 'one|another'", target="w|v"), {"w": A["w"] * F16(2), "v": A["v"] * 2},
         plan={"inputs": ["a::a.safetensors"]}),
    Case("a capture in braces", "names-collide", [{"copy": {"from": r"a::n\.(\d)\.b", "to": "a::b.{1}"}}],
         put("A capture is written \\1, not {1}.", to=r"a::b.\1"), {"b.0": A["n.0.b"], "b.1": A["n.1.b"]}),
    Case("a slice of nothing", "slice-empty", [{"copy": {"from": "a::w::[4:9]", "to": "a::x"}}],
         put("a range ends before its second number", from_="a::w::[3:4]"), {"x": A["w"][3:4]}, note=True),
    Case("a kind that nothing is of", "no-match",
         [{"scale_": {"target": {"alias": "a", "name": "w|v", "kind": "complex"}, "by": 2}}],
         put("tensors of kind float", target="a::w|v"), {"w": A["w"] * F16(2), "v": A["v"] * 2}),
    Case("a slice of all", "dtype-unsupported",
         [{"reduce": {"from": "a::(v|ids)::[:1]", "to": r"a::\1.mean", "mode": "mean"}}],
         lambda plan, hint: chosen_key(plan, hint, "from"), {"v.mean": A["v"][:1].mean()}),
    # sets that do not pair up
    Case("sets without a pair", "unmatched",
         [{"add_": {"from": "b::(w)", "to": r"a::\1.x", "unmatched": "drop"}}],
         put("Compare the names on both sides.", to=r"a::\1"), {"w": A["w"] + B["w"]}, of="lower/pairing.py"),
    Case("what a step leaves out, meant", "unmatched",
         [{"compute": {"from": {"x": r"a::n\.0\.(.*)", "y": r"b::n.0.\1"}, "expr": "x + y"}}], add(0),
         {"n.0.b": A["n.0.b"] + B["n.0.b"]}, b={**B, "n.0.c": B["n.0.b"]}, note=True, of="lower/view.py"),
    # plans within plans, and what steps save
    Case("plans in plans, too deep", "execute-nested", nested(17, DOUBLE),
         steps("Replace this step by the steps that it executes.", *nested(16, DOUBLE)), DOUBLED),
    Case("a file saved among those of a folder", "output-inside",
         [{"save": {"path": "s/", "alias": "a"}}, {"save": {"path": "s/x.safetensors", "alias": "b"}}],
         put("Write to a path of its own.", at=1, path="x.safetensors"), of="lower/fold.py"),
    Case("an output within what a step saves", "output-inside", [{"save": {"path": "s/", "alias": "a"}}],
         output("Write to a path of its own.", path="out.safetensors"), output=to("s/x.safetensors"),
         of="lower/outputs.py"),
    Case("a part of what was saved", "load-inside-save",
         [{"save": {"path": "s/", "alias": "a"}}, {"load": {"path": "s/model.safetensors", "alias": "c"}},
          {"copy": {"from": "c::w", "to": "a::x"}}],
         put("Load what was saved as a whole, by its own path", at=1, path="s/"), {"x": A["w"]}),
    # inputs
    Case("an alias behind one colon", "io-input", [{"scale_": {"target": "w", "by": 2}}],
         lambda plan, hint: {**plan, "inputs": [endings(hint)[0]]}, DOUBLED, output={"path": "out.safetensors"},
         plan={"inputs": ["a:a.safetensors"]}, of="lower/state.py"),
    # the config of an output
    Case("a config in a file of tensors", "output-config", DOUBLE, output("Write to a folder", path="out/"), DOUBLED,
         output=to("out.safetensors", config={"x": 1})),
    Case("a change half in full", "output-config", DOUBLE,
         output("Put the values to set under `patch`", config={"patch": {"x": 1, "y": 2}}), DOUBLED,
         output=to("out/", config={"patch": {"x": 1}, "y": 2})),
    Case("a key of the config that is not there", "output-config", DOUBLE,
         output("Leave it out of `remove`", config={"patch": {"x": 1}}), DOUBLED,
         output=to("out/", config={"remove": ["y"], "patch": {"x": 1}})),
    Case("an alias of an output that is not there", "alias-unknown", DOUBLE, output("There are: a, b.", alias="a"),
         DOUBLED, output={"path": "out.safetensors", "alias": "x"}, of="lower/outputs.py"),
    Case("an output of no input", "output-empty", [{"help": {}}],
         lambda plan, hint: {**plan, "inputs": ["a::a.safetensors"]}, plan={"inputs": []},
         output={"path": "out.safetensors"}),
    Case("a plan that deletes all", "output-empty", [*DOUBLE, {"delete": {"target": "a::.*"}}],
         changed(lambda p: p["transforms"].pop(), says="The steps delete every tensor."), DOUBLED,
         plan={"inputs": ["a::a.safetensors"]}, output={"path": "out.safetensors"}),
    # formats of outputs
    Case("an array file of several tensors", "dtype-unsavable", DOUBLE,
         lambda plan, hint: output("", path=endings(hint)[0])(plan, hint), DOUBLED, output=to("out.npy")),
    Case("an array file of one tensor of several", "dtype-unsavable", DOUBLE,
         lambda plan, hint: {**plan, "output": SAFE, "transforms": [
             *plan["transforms"], {"save": {"path": "w.npy", quoted(hint)[0]: "a::w"}}]}, DOUBLED,
         output=to("out.npy")),
    Case("an eight-bit float in an array file", "dtype-unsavable", [{"copy": {"from": "a::f", "to": "a::g"}},
         {"delete": {"target": "a::f"}}], output("Write .npz", path="out.npz"),
         {"f": None, "g": EIGHT}, a={"f": EIGHT},
         output=to("out.npy")),
    Case("an eight-bit float cast", "dtype-unsavable", [],
         changed(lambda p: p["transforms"].append({"cast_": {"target": "a::f", "to": "float16"}}),
                 says="or cast it first"),
         {"out": np.array([1, 2], F16), "f": None}, a={"f": EIGHT},
         output=to("out.npy")),
    Case("a member called like another", "dtype-unsavable", [{"copy": {"from": "a::w", "to": "a::v.npy"}}],
         put("Rename it.", to="a::v2"), {"v2": A["w"]}, output=to("out.npz"), of="store/numpy/encode.py"),
    Case("a name beyond a zip archive", "dtype-unsavable", [{"copy": {"from": "a::w", "to": "a::" + "x" * 65_535}}],
         put("Rename it.", to="a::x"), {"x": A["w"]}, output=to("out.npz")),
    Case("metadata beyond a zip archive", "dtype-unsavable", DOUBLE,
         output("Write safetensors", path="out.safetensors"), DOUBLED,
         output=to("out.npz", metadata={"x": "y" * 65_536})),
    Case("less metadata", "dtype-unsavable", DOUBLE, output("or give less `metadata`", metadata={"x": "y"}),
         DOUBLED, output=to("out.npz", metadata={"x": "y" * 65_536})),
    Case("a tensor called like the metadata", "dtype-unsavable", [{"move": {"from": "a::w", "to": "a::__metadata__"}}],
         put("Rename it.", to="a::x"), {"x": A["w"], "w": None}, of="store/safetensors/layout.py"),
    Case("one tensor without a dict, of several", "dtype-unsavable", DOUBLE,
         output("Drop the option `bare`.", options=None), DOUBLED, output=to("out.pt", options={"bare": True})),
    Case("orbax and a tensor of nothing", "dtype-unsavable", DOUBLE,
         changed(lambda p: p["transforms"].append({"delete": {"target": "a::e"}}),
                 says="or leave it out: it holds nothing"), {**DOUBLED, "e": None},
         a={"w": A["w"], "e": np.zeros(0, F16)}, output=to("out", format="orbax")),
    Case("orbax and an empty key", "dtype-unsavable", [{"move": {"from": "a::w", "to": "a::x..y"}}],
         put("Rename it.", to="a::x.y"), {"x.y": A["w"], "w": None}, output=to("out", format="orbax"),
         of="store/orbax/encode.py"),
    Case("orbax and a tensor above others", "dtype-unsavable", [{"copy": {"from": "a::w", "to": "a::n"}}],
         put("Rename one of the two.", to="a::m"), {"m": A["w"]}, output=to("out", format="orbax")),
    Case("orbax and a folder like a pattern", "dtype-unsavable", DOUBLE,
         output("Write to another folder, and move the checkpoint afterwards.", path="out"), DOUBLED,
         output=to("out[1]", format="orbax")),
    Case("an adapter whose scale is not known", "adapter-config",  # of factors whose product is the change itself
         [{"phlora": {"target": "a::v", "target_a": "a::base_model.model.v.lora_A.weight",
                      "target_b": "a::base_model.model.v.lora_B.weight", "rank": 1}}], in_output(1),
         {"v": None, "base_model.model.v.lora_A.weight": np.zeros((1, 2), np.float32),
          "base_model.model.v.lora_B.weight": np.zeros((2, 1), np.float32)}, a={"v": np.zeros((2, 2), np.float32)},
         output=to("out/", format="peft")),
    # places of outputs
    Case("a folder where a file is", "io-output-kind", DOUBLE, output("Write to another path", path="out/"), DOUBLED,
         output=to("there.safetensors/")),
    Case("a folder below a file", "io-output", DOUBLE, output("Choose another path.", path="out.safetensors"), DOUBLED,
         output=to("there.safetensors/out.safetensors")),
    Case("a checkpoint with a file of one's own beside it", "io-output-foreign", DOUBLE,
         changed(lambda p: Path("there/thesis.tex").rename("thesis.tex"), says="or move it away first"), DOUBLED,
         output=to("there/", overwrite=True), world=beside),
    Case("a folder with what is no checkpoint", "io-output-foreign", DOUBLE,
         output("Write to another path", path="out/"), DOUBLED,
         output=to("thesis/", overwrite=True), world=lambda: folder("thesis", chapter__tex="1")),
    Case("a folder that holds the plan", "io-output-place", DOUBLE,
         lambda plan, hint: output("", path=hint.rpartition(" ")[2].removesuffix(".") + "/")(plan, hint), DOUBLED,
         output=to("./", overwrite=True)),
]  # fmt: skip


def chosen_key(plan: Any, hint: str, name: str) -> Any:
    """Choose by kind, as the hint writes it."""
    import yaml

    step(plan)[1][name] = yaml.safe_load(quoted(hint)[0])
    return plan
