"""Texts with a mistake, what the hint puts in its place, and what comes of the text as it is then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax import plugins
from brainsurgery_jax.errors import Diagnostic, speaking
from brainsurgery_jax.importers.mergekit import plan_of
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.parse import parse_layout
from brainsurgery_jax.layout.proof import prove
from brainsurgery_jax.plan.oly import parse_oly
from brainsurgery_jax.plan.source import plain
from tests import checkpoints
from tests.importers.merges import put_models, shapes
from tests.layout.test_convert import LLAMA, llama, model

Arrays = Mapping[str, np.ndarray]
Follow = Callable[[str], Arrays]
"""Does what a text says. Raises PlanError for what is wrong with it."""

M = {
    "w": np.arange(4, dtype=np.float32), "v": np.array([[1, 2], [3, 4]], np.float32), "ids": np.array([29, 3, 7]),
    "tmp.x": np.array([5], np.float32),
    **{f"h.{i}.w": np.array([i, i + 1], np.float32) for i in range(3)},
    **{f"k.{i}.b": np.array([7, i], np.float32) for i in range(2)}, "m[0": np.array([6], np.float32),
    "a" * 60: np.array([8], np.float32),
}  # fmt: skip
"""The model that texts are about."""

_NORM = "model.norm.weight"
NORMS = {
    letter: checkpoints.normal(shapes()[_NORM], seed=97 * at + list(shapes()).index(_NORM)).astype(np.float32)
    for at, letter in enumerate("abc")
}
"""A tensor of each of the models to merge."""

MINE = """
layout: mine
doc: for tests
dims: {D: width, L: layers, K: kind}
options: {pairs: {known: [{when: "K == 'pairs'", is: true}], ask: Are there pairs?}}
ranges: {i: L}
rest: true
rules:
  - {hf: 'h.{i}.w', to: 'g.{i}', shape: [D], when: pairs}
"""
HALF = '''
from brainsurgery_jax.op import Form, op

@op(Form("half_", ("target",), ("target",), "existing"))
def half(x):
    """Half of a tensor."""
    return x / 2
'''
"""A file with an op."""

NO_W: Mapping[str, Any] = {"w": None}
W2 = {"w": M["w"] * 2}
HEAD = "inputs: [a::model.safetensors]\n"
TAIL = "\noutput: out.safetensors\n"


class Row(NamedTuple):
    """A text, the code of what is wrong with it, and the place that the hint is about: what stands there, and what the
    hint puts there. `says`: words of the hint where it does not have that literally; `expect`: the tensors that differ
    from those of the model in what comes out (None: not there)."""

    follow: Follow
    code: str
    text: str
    old: str
    new: str
    says: str = ""
    expect: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        words = f"{self.follow.__name__} {self.code} {self.old} {self.new}"
        return words if len(words) < 90 and words.isprintable() else words[:60].encode("unicode_escape").decode()

    @property
    def mended(self) -> str:
        assert self.text.count(self.old) == 1, "the text has one place that is wrong"
        return self.text.replace(self.old, self.new)


def found(row: Row) -> Diagnostic:
    """The one mistake of a text, in the current folder."""
    lay_out()
    with pytest.raises(bs.PlanError) as refused:
        row.follow(row.text)
    (mistake,) = (d for d in refused.value.diagnostics if d.severity == "error")
    return mistake


def lay_out() -> None:
    """Write the models, as a file and as a folder with its config, a layout, and an empty folder."""
    for folder in ("whole", "empty"):
        Path(folder).mkdir(exist_ok=True)
    checkpoints.write("whole/model.safetensors", M)
    Path("mine.yaml").write_text(MINE)
    Path("whole/config.json").write_text('{"num_hidden_layers": 3}')
    for name in ("model", "other"):
        checkpoints.write(f"{name}.safetensors", M)


def ran(*items: Any) -> Arrays:
    """What a plan writes."""
    bs.load(*items).run(durable=False)
    return bs.open("out.safetensors") if Path("out.safetensors").exists() else M


def plan(text: str) -> Arrays:
    """A plan file."""
    Path("plan.yaml").write_bytes(text.encode(errors="surrogateescape"))
    return ran("plan.yaml")


def step(text: str) -> Arrays:
    """A step of a plan file, after its dash."""
    return plan(f"{HEAD}transforms:\n  - {text}{TAIL}")


def line(text: str) -> Arrays:
    """A step as one line."""
    return ran({**yaml.safe_load(HEAD + TAIL), "transforms": [plain(parse_oly(text))]})


def expression(text: str) -> Arrays:
    """An expression over the tensor `w`."""
    return ran({**yaml.safe_load(HEAD + TAIL), "transforms": [{"compute": {"from": {"w": "w"}, "expr": text}}]})


def command(text: str) -> Arrays:
    """A command line, an item on each line of the text; the plan scales `w` by the variable `factor`, and other files
    have a first or a second step alone."""
    Path("first.yaml").write_text("transforms: [{delete: {target: v}}]")
    Path("second.yaml").write_text("transforms: [null, {delete: {target: v}}]")
    scale = "{scale_: {target: w, by: '${vars.factor}'}}"
    Path("plan.yaml").write_text(f"vars: {{factor: 2}}\n{HEAD}transforms: [{scale}]{TAIL}")
    with speaking("shell"):
        return ran(*text.splitlines())


def layout(text: str) -> Arrays:
    """A layout file."""
    config = {"width": 12, "head": 3, "layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    made = parse_layout(text, "mine.yaml")
    bind(made, config)
    assert prove(made, config).holds
    return M


def converted(text: str) -> Arrays:
    """The name of the layout by which a model is converted."""
    if not Path("llama").exists():
        model(Path("llama"), llama(), {**LLAMA, "model_type": "ours"})
    bs.convert("llama", "converted", layout=text, durable=False)
    assert len(bs.open("converted")) == len(llama())
    return M


def merge(text: str) -> Arrays:
    """A configuration of mergekit, of whose result one tensor counts."""
    put_more_models()
    Path("merge.yml").write_text(text)
    Path("plan.yaml").write_text(plan_of("merge.yml"))
    ran("plan.yaml")
    return {**M, "norm": bs.open("merged")[_NORM]}


def stacked(text: str) -> Arrays:
    """The config.json of a model whose layers are stacked."""
    put_more_models()
    Path("a/config.json").write_text(text)
    return merge("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 3]}]}]")


def operation(text: str) -> Arrays:
    """A file with an op `half_`, which a plan uses."""
    return operations("mine.py", text)


def operations(text: str, file: str = HALF) -> Arrays:
    """The path of a file with an op `half_`."""
    Path(text).write_text(file)
    with plugins.scope():
        plugins.register(text)
        try:
            return step("half_: {target: w}")
        except NameError as bad:
            mistake = plugins.blamed(bad)
            assert mistake is not None
            raise bs.PlanError([mistake]) from bad


def put_more_models() -> None:
    """The models to merge, one that lacks tensors, and one of two dtypes."""
    if not Path("a").exists():
        held = put_models(Path())
        single = {name: array.astype(np.float32) for name, array in held["b"].items()}
        for folder, tensors in {
            "unlike": {name: array for name, array in single.items() if "k_proj" not in name},
            "mixed": {
                name: array.astype(np.float16 if "k_proj" in name else np.float32) for name, array in single.items()
            },
        }.items():
            Path(folder).mkdir()
            checkpoints.write(f"{folder}/model.safetensors", tensors)
