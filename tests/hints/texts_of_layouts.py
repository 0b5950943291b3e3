"""Mistakes in layout files, in the step that names one, and in configurations of mergekit."""

from __future__ import annotations

from tests.hints.rows import (
    HALF,
    NORMS,
    W2,
    M,
    Row,
    converted,
    layout,
    merge,
    operation,
    operations,
    plan,
    stacked,
    step,
)

HEAD = """
layout: mine
doc: for tests
dims: {D: width, H: [head, width // heads], L: layers}
options: {scan: true}
ranges: {i: L}
rules:
  - """
FAMILY = """
layout: mine
doc: for tests
family: llama
ranges: {i: L}
rules:
  - """
Q = "{hf: 'model.layers.{i}.self_attn.q_proj.weight', to: 'q.{i}'}"
PLAIN = "{hf: a, to: b, shape: [D]}"
G = {f"h.{i}.w": None for i in range(3)} | {f"g.{i}": M[f"h.{i}.w"] for i in range(3)}
MINE = "layout: {name: ./mine.yaml, config: {width: 2, layers: 3, kind: pairs}}"

LAYOUTS = [
    Row(layout, "layout-name", FAMILY + Q.replace("q_proj", "query"), "query", "q_proj", "Correct the name"),
    Row(layout, "layout-form", FAMILY + Q.replace("q_proj", "q_norm"), "}'}", "}', shape: [H]}",
        "Give the shape that is meant: `shape: [...]`."),
    Row(layout, "layout-form", FAMILY.replace("llama", "lama") + Q, "lama", "llama", "Known: bart, bert, "),
    Row(layout, "layout-dim", FAMILY.replace("rules:", "dims: {N: heads}\nrules:") + Q, "dims: {N: heads}\n", "",
        "Leave it out, or give yours another name."),
    Row(layout, "layout-name", HEAD + "{hf: 'a.{i', to: 'b.{i}', shape: [D]}", "a.{i", "a.{i}", "`{i}`"),
    Row(layout, "layout-expression", HEAD + "{hf: a, to: b, shape: [open(D)]}", "open(D)", "D + 1", "numbers, + - *"),
    Row(layout, "layout-expression", HEAD + "{hf: a, to: b, shape: [D / 2]}", "D / 2", "D // 2", "`//`"),
    Row(layout, "layout-dim", HEAD + "{hf: a, to: b, shape: [width]}", "[width]", "[D]", "Known: D, H, L"),
    Row(layout, "layout-dim", HEAD + "{hf: a, to: b, shape: [depth]}".replace("depth", "layers"), "[layers]", "[L]",
        "Name fields of config.json under `dims`."),
    Row(layout, "layout-family", HEAD + "{hf: 'a.{i}', to: b, shape: [D]}", "[D]}",
        "[D], ops: [{stack: {over: i, axis: 0}}]}", "`{stack: {over: i, axis: 0}}`"),
    Row(layout, "layout-family", HEAD + "{hf: 'a.{i}', to: b, shape: [D]}", "to: b", "to: 'b.{i}'",
        "use it on the other side, too"),
    Row(layout, "layout-family", HEAD + "{hf: a, to: 'b.{i}', shape: [L, D]}", "D]}",
        "D], ops: [{split: {over: i, axis: 0}}]}", "`{split: {over: i, axis: 0}}`"),
    Row(layout, "layout-family", HEAD + "{hf: a, to: b, shape: [D], ops: [{stack: {axis: 0}}]}",
        ", ops: [{stack: {axis: 0}}]", "", "Left to join over: none: each tensor stands alone."),
    Row(layout, "layout-family", HEAD + "{hf: a, to: 'b.{i}', shape: [L, D], ops: [{split: {over: i, axis: 0}}, "
        "{split: {over: e, axis: 0}}]}", ", {split: {over: e, axis: 0}}", "", "The names under `to` differ in: i."),
    Row(layout, "layout-op-unknown", HEAD + "{hf: a, to: b, shape: [D, H], ops: [transpse]}", "transpse", "transpose"),
    Row(layout, "layout-op", HEAD + "{hf: a, to: b, shape: [D, H], ops: [{reshape: D}]}", "reshape: D",
        "reshape: [H, D]", "Write `reshape: [D, N, H]`."),
    Row(layout, "layout-key", HEAD + "{hf: a, to: b, shape: [D], shapes: [D]}", ", shapes: [D]", "",
        "Keys: hf, to, shape"),
    Row(layout, "layout-form", HEAD.replace("{scan: true}", "{rope: {known: [{is: true}], ask: About rope.}}") + PLAIN,
        "{is: true}", "{when: H == 3, is: true}", "Write what determines it, `{when: "),
    Row(layout, "layout-form", HEAD.replace("{scan: true}", "{rope: {ask: About rope.}}") + PLAIN,
        "{ask", "{known: [{when: H == 3, is: true}], ask", "`rope: {known: [{when: FORMULA, is: VALUE}], ask: "),
]  # fmt: skip

NAMED = [
    Row(step, "layout-option", MINE[:-1] + ", options: {pears: true}}", "pears", "pairs", "Options of mine: ", G),
    Row(step, "layout-open", MINE.replace("kind: pairs", "kind: other"), "other}}",
        "other}, options: {pairs: true}}", "`options: {pairs: true}`", G),
    Row(step, "layout-config", MINE.replace("layers: 3, ", ""), "width: 2", "width: 2, layers: 3",
        "add the field to it", G),
    Row(step, "layout-unknown", MINE.replace("mine", "mein"), "mein", "mine", "Give the path of a YAML file.", G),
    Row(step, "layout-unknown", MINE.replace("./mine.yaml", "mine"), "mine", "./mine.yaml", expect=G),
    Row(converted, "convert-layout", "tunix", "tunix", "flax", "For any model: flax."),
]  # fmt: skip

AB = "models:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n"
LINEAR = f"merge_method: linear\n{AB}"
MEAN = {"norm": (NORMS["a"] + NORMS["b"]) / 2}
A_ALONE = {"norm": NORMS["a"]}
SLICES = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 4]}]\n"
TASK = "merge_method: task_arithmetic\nbase_model: a\n"
TIED = "merge_method: ties\nbase_model: a\nparameters: {weight: 1}\nslices:\n" + (
    "- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"
    "- sources: [{model: b, layer_range: [2, 4]}]\n"
)
LONELY = "merge_method: karcher\nslices:\n" + (
    "- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: a, layer_range: [2, 4]}]\n"
)
THREE = (
    "merge_method: linear\nparameters: {weight: 1}\n"
    "slices: [{sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]}]\n"
)

MERGES = [
    Row(merge, "import-form", LINEAR.replace("b, parameters: {weight: 1}", "b"), "b}", "b, parameters: {weight: 1}}",
        "`parameters: {weight: 1.0}`", MEAN),
    Row(merge, "import-form",
        f"{TASK}slices:\n- sources: [{{model: b, layer_range: [0, 4], parameters: {{weight: 1}}}}]\n",
        "[{", "[{model: a, layer_range: [0, 4]}, {", "Add it to the sources, with its layer_range.",
        {"norm": NORMS["a"] + (NORMS["b"] - NORMS["a"])}),
    Row(merge, "import-form", SLICES.replace("4]}", "4]}, {model: b, layer_range: [0, 4]}"), ", {model: b",
        "]\n- sources: [{model: b", "Give each model its own slice.",
        {"norm": NORMS["b"]}),
    Row(merge, "import-form", LINEAR.replace("model: b", "model: /no/such/b"), "/no/such/b", "b",
        "Paths are relative to the working directory.", MEAN),
    Row(merge, "import-form", SLICES.replace("[0, 4]", "[0, 9]"), "9", "4", "END is at most 4.", A_ALONE),
    Row(merge, "import-unsupported", THREE.replace("model: b", "model: unlike"), "unlike", "b",
        "Merge models of one architecture", MEAN),
    Row(merge, "import-form", f"{LINEAR}dtype: null\n".replace("model: b", "model: mixed"), "dtype: null",
        "dtype: float32",
        expect=MEAN),
    Row(merge, "import-form", LINEAR.replace("model: b", "model: b+"), "b+,", "b,",
        "Write `MODEL`, or `MODEL+ADAPTER` with one adapter.", MEAN),
    Row(merge, "import-unsupported", LINEAR.replace("model: b", "model: {model: b, revision: main}"),
        "{model: b, revision: main}", "b", "Write `PATH`, `NAME@REVISION`", MEAN),
    Row(merge, "import-form", LINEAR.replace("linear", "lineer"), "lineer", "linear", "Supported: linear", MEAN),
    Row(merge, "import-form", AB, "models:", "merge_method: linear\nmodels:", "Supported: linear", MEAN),
    Row(merge, "import-form", TIED, "[{model: b", "[{model: a, layer_range: [2, 4]}, {model: b",
        "Add it to the sources, with its layer_range.", {"norm": NORMS["a"] + (NORMS["b"] - NORMS["a"])}),
    Row(merge, "import-form", LONELY, "karcher", "passthrough", "write `merge_method: passthrough`", A_ALONE),
    Row(merge, "import-form", TASK.replace("base_model: a\n",
        "") + AB.replace("- {model: a, parameters: {weight: 1}}\n", ""),
        "models:", "base_model: a\nmodels:", "Add `base_model: PATH`.",
        {"norm": NORMS["a"] + (NORMS["b"] - NORMS["a"])}),
    Row(merge, "import-form", LINEAR.replace("model: b, ", ""), "{parameters", "{model: b, parameters",
        "Add `model: PATH`.",
        MEAN),
    Row(merge, "import-unsupported", LINEAR.replace("weight: 1}}\n- {model: b", "wieght: 1, weight: 1}}\n- {model: b"),
        "wieght: 1, ", "", "Supported: weight, normalize.", MEAN),
    Row(merge, "import-unsupported", f"{LINEAR}merge_metod: linear\n", "merge_metod: linear\n", "",
        "Supported: merge_method, models", MEAN),
    Row(merge, "import-unsupported", LINEAR.replace("1}}\n- {model: b",
        "1}}\n- {model: a, parameters: {weight: 1}}\n- {model: b"),
        "{weight: 1}}\n- {model: a, parameters: {weight: 1}}", "{weight: 2}}", "once, with the sum of its weights",
        {"norm": (2 * NORMS["a"] + NORMS["b"]) / 3}),
]  # fmt: skip

CONFIGS = [
    Row(stacked, "import-unsupported", '{"model_type": "llama"}', "{", '{"num_hidden_layers": 4, ',
        "Add it, as `num_hidden_layers`", A_ALONE),
    Row(plan, "output-config", "inputs: [whole]\ntransforms: [{scale_: {target: w, by: 2}}]\n"
        "outputs: [out.safetensors, {path: made/, config: {remove: [num_layers]}}]", "[num_layers]", "[]",
        "Leave it out of `remove`", W2),
]  # fmt: skip

HALVED = {"w": M["w"] / 2}

OPS = [
    Row(operation, "ops-file", HALF.replace('"half_"', '"scale_"') + HALF, '"scale_"', '"quarter_"',
        "Give yours another name.", HALVED),
    Row(operation, "ops-file", HALF.replace("@op", "# @op"), "# @op", "@op",
        "Decorate a function with `@op(Form(...))`",
        HALVED),
    Row(operation, "ops-file", HALF.replace('    """Half of a tensor."""\n', ""), "(x):",
        '(x):\n    """Half of a tensor."""',
        "Write one: its first line is the help of the op.", HALVED),
    Row(operation, "ops-file", HALF.replace("existing", "there"), "there", "existing", "There are: ", HALVED),
    Row(operation, "ops-file", HALF.replace("(x)", "(x, by: int = 2)"), "(x, by", "(x, *, by",
        "parameters behind a `*` are keys of the plan", HALVED),
    Row(operation, "ops-file", HALF.replace("(x)", "(x, *, by: object.__init__ = 2)"), "object.__init__", "int",
        "Annotate keys of the plan with int", HALVED),
    Row(operation, "ops-file", HALF.replace("x / 2", "x / two"), "x / two", "x / 2", "BRAINSURGERY_TRACEBACK=1",
        HALVED),
    Row(operation, "ops-file", f"{HALF}half(two)\n", "half(two)\n", "", "It is run as a module, as by `import`.",
        HALVED),
    Row(operations, "ops-file", "mine.txt", "mine.txt", "mine.py", "name a file that ends in .py", HALVED),
]  # fmt: skip

ROWS = [*LAYOUTS, *NAMED, *MERGES, *CONFIGS, *OPS]
