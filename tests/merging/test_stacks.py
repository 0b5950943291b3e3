"""Which tensors a merge takes for all layers of a model: what a scanned model gives is what its single layers give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.merging.stacks import find_layers
from brainsurgery_jax.nametree import nest
from tests.checkpoints import normal, problems, read, write

pytestmark = pytest.mark.usefixtures("here")

Config = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
L = 6
SHAPES = {"attn": (5, 4), "mlp": (4, 7), "norm": (5,)}
ALIASES = ("base", "a", "b")


def layer(alias: str, at: int, name: str) -> np.ndarray:
    """A tensor of a layer of a model."""
    return normal(SHAPES[name], seed=1000 * ALIASES.index(alias) + 10 * at + len(name))


TREES: dict[str, tuple[Callable[[str], str], int]] = {
    "vit": (lambda n: f"Transformer.encoderblock.MlpBlock_0.{n}", 0),
    "mixtral": (lambda n: f"params.decoder.layers.{'MoeBlock_0.wi_0' if n == 'mlp' else n}", 1),
    "block": (lambda n: f"decoder.block.{n}", 0),
    "body": (lambda n: f"scan.body.{n}", 0),
    "no word": (lambda n: f"model.trunk.{n}", 0),
    "experts": (lambda n: f"layers.experts.0.{n}", 0),
}
"""Names of a scanned model, and its axis of layers."""

TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * 2
WOVEN: dict[str, tuple[Callable[[int], str], list[list[int]], Config]] = {
    "gemma 3": (lambda at: f"decoder.layers.layers_{at}.", [[0, 3], [1, 4], [2, 5]], {}),
    "gpt-oss": (lambda at: f"decoder.layers.layers_{at}.", [[0, 2, 4], [1, 3, 5]], {}),
    "gemma 2": (lambda at: f"decoder.layers.{{}}_{('local', 'global')[at]}.w", [[0, 2, 4], [1, 3, 5]],
                {"model_type": "gemma2"}),
    "kinds": (lambda at: f"decoder.layers.{{}}_{('local', 'global')[at]}.w", [[0, 1, 3, 4], [2, 5]],
              {"layer_types": TYPES}),
    "deepseek": (lambda at: f"decoder.{('dense', 'moe')[at]}_layers.", [[0], [1, 2, 3, 4, 5]], {}),
}  # fmt: skip
"""Where the parts of a scanned model lie, the layers that each holds along axis 1, and what its config says."""


def name_in(start: str, name: str) -> str:
    """The name of a tensor in a part of a model."""
    return start.format(name) if "{}" in start else start + name


def models(start: Callable[[int], str], layers: list[list[int]], axis: int = 1) -> dict[str, Tensors]:
    """Models of several parts, each of which holds some layers along an axis."""
    return {alias: {name_in(start(at), name): np.stack([layer(alias, i, name) for i in own], axis=axis)
                    for at, own in enumerate(layers) for name in SHAPES} for alias in ALIASES}  # fmt: skip


def tree(which: str) -> dict[str, Tensors]:
    """Models whose tensors hold all layers, under the names of a tree."""
    name_of, axis = TREES[which]
    stacked = models(lambda _: "", [list(range(L))], axis)
    return {alias: {name_of(name): x for name, x in own.items()} for alias, own in stacked.items()}


def config() -> Config:
    return {"num_hidden_layers": L}


def run(tmp_path: Path, tensors: dict[str, Tensors], keys: dict[str, Any], said: Config | None) -> Tensors:
    """The result of a merge of folders, with a config."""
    tmp_path.mkdir(exist_ok=True)
    for alias, own in tensors.items():
        (tmp_path / alias).mkdir(exist_ok=True)
        write(tmp_path / alias / "model.safetensors", own)
        if said is not None:
            (tmp_path / alias / "config.json").write_text(json.dumps(said))
    plan = {"inputs": [f"{alias}::{tmp_path / alias}" for alias in tensors], "transforms": [{"merge": keys}],
            "output": {"path": str(tmp_path / "made"), "alias": "m", "overwrite": True}}  # fmt: skip
    bs.load(plan).run(durable=False)
    return read(tmp_path / "made" / "model.safetensors")


BASED = {"base": "base", "models": ["a", "b"], "to": "m"}
TIES = {**BASED, "method": "ties", "parameters": {"density": 0.4}}
LIST = {**BASED, "method": "task_arithmetic", "parameters": {"weight": [0, 1]}}
LISTED_TIES = {**TIES, "parameters": {"density": 0.4, "weight": [0.25, 1]}}
STEPS = {"ranks": TIES, "list": LIST, "both": LISTED_TIES, "matrices": {**BASED, "method": "iso_c"}}


def single(tmp_path: Path, keys: dict[str, Any]) -> Tensors:
    """What a merge makes of a model that has a tensor for each layer."""
    each = {alias: {f"layers.{at}.{n}": layer(alias, at, n) for at in range(L) for n in SHAPES} for alias in ALIASES}
    return run(tmp_path / "single", each, keys, config())


def check(made: np.ndarray, wanted: Tensors, name: str, axis: int, layers: Any = range(L)) -> None:
    """A stack has in each layer what the model of single layers has there."""
    each = np.stack([wanted[f"layers.{at}.{name}"] for at in layers], axis=axis)
    np.testing.assert_allclose(made, each, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("which", TREES)
def test_a_scanned_model_gives_what_its_layers_give(which: str, step: str, tmp_path: Path):
    name_of, axis = TREES[which]
    made, wanted = run(tmp_path, tree(which), STEPS[step], config()), single(tmp_path, STEPS[step])
    for name in SHAPES:
        check(made[name_of(name)], wanted, name, axis)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("which", WOVEN)
def test_stacks_that_share_the_layers_of_a_model_give_what_its_layers_give(which: str, step: str, tmp_path: Path):
    start, layers, more = WOVEN[which]
    made = run(tmp_path, models(start, layers), STEPS[step], {**config(), **more})
    wanted = single(tmp_path, STEPS[step])
    for at, own in enumerate(layers):
        for name in SHAPES:
            check(made[name_in(start(at), name)], wanted, name, 1, own)


@pytest.mark.parametrize("more", [{}, {"layer_axis": 1}])
def test_a_stack_beside_another_needs_no_word_for_layers(more: dict[str, int], tmp_path: Path):
    towers = models(lambda at: ("text.layers.", "image.trunk.")[at], [list(range(L))] * 2)
    made, wanted = run(tmp_path, towers, {**LISTED_TIES, **more}, config()), single(tmp_path, LISTED_TIES)
    check(made["text.layers.mlp"], wanted, "mlp", 1)
    check(made["image.trunk.mlp"], wanted, "mlp", 1)


def test_layers_that_are_left_of_a_scan_come_after_its_stacks(tmp_path: Path):
    stacks = models(lambda at: f"decoder.layers.layers_{at}.", [[0, 2], [1, 3]])
    for alias, own in stacks.items():
        for at in (4, 5):
            own |= {f"decoder.layers_remainder.layers_{at - 4}.{n}": layer(alias, at, n) for n in SHAPES}
    made, wanted = run(tmp_path, stacks, LIST, config()), single(tmp_path, LIST)
    np.testing.assert_array_equal(made["decoder.layers_remainder.layers_0.attn"], wanted["layers.4.attn"])
    check(made["decoder.layers.layers_1.attn"], wanted, "attn", 1, [1, 3])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_stack_is_one_also_where_only_one_of_its_tensors_is_merged(axis: int, step: str, tmp_path: Path):
    keys = {**STEPS[step], "of": r"layers\.attn"}
    made = run(tmp_path, models(lambda _: "layers.", [list(range(L))], axis), keys, config())
    check(made["layers.attn"], single(tmp_path, STEPS[step]), "attn", axis)


@pytest.mark.parametrize("step", STEPS)
def test_a_model_may_have_a_single_stacked_tensor(step: str, tmp_path: Path):
    stacked = {alias: {"layers.attn": np.stack([layer(alias, at, "attn") for at in range(L)])} for alias in ALIASES}
    check(run(tmp_path, stacked, STEPS[step], config())["layers.attn"], single(tmp_path, STEPS[step]), "attn", 0)


@pytest.mark.parametrize(("which", "of"), [("vit", None), ("mixtral", None), ("no word", None), ("vit", ".*mlp")])
def test_an_axis_that_the_step_names_is_taken_without_a_config(which: str, of: str | None, tmp_path: Path):
    name_of, axis = TREES[which]
    keys = {**LISTED_TIES, "layer_axis": axis, **({"of": of} if of else {})}
    check(run(tmp_path, tree(which), keys, None)[name_of("mlp")], single(tmp_path, LISTED_TIES), "mlp", axis)


def test_lists_are_refused_where_no_config_says_which_layers_are_local(tmp_path: Path):
    start, layers, _ = WOVEN["gemma 2"]
    tensors = models(start, layers)
    for more in ({}, {"layer_axis": 1}):
        (problem,) = problems(tmp_path, tensors, {"merge": {**LIST, **more}})
        assert "no config says which layers 'decoder.layers' has in" in problem.message
        assert (problem.hint or "").startswith("Give one number;")
    made = run(tmp_path, tensors, {**LIST, "parameters": {"weight": 1}}, None)
    assert made.keys() == tensors["base"].keys()


def test_a_list_is_refused_where_a_stack_fits_no_number_of_layers(tmp_path: Path):
    with pytest.raises(PlanError, match="the axis of layers of 'layers' may be 1, or there is none"):
        run(tmp_path, models(lambda _: "layers.", [[0, 1, 2]]), LIST, config())


def test_numbered_layers_are_no_body_of_a_scan():
    shapes = {f"layers.layers_{at}.{n}": s for at in range(L) for n, s in (("q", (2, 4)), ("o", (2, 6)))}
    assert not find_layers(shapes, config).stacks
    assert len(find_layers(shapes, lambda: {"num_hidden_layers": 2 * L}).stacks) == 2 * L


@pytest.mark.parametrize("which", ["vit", "mixtral"])
def test_trees_without_a_config_give_the_bits_of_a_run_with_one(which: str, tmp_path: Path):
    tensors = tree(which)
    wanted = run(tmp_path, tensors, TIES, config())
    trees: dict[str, Any] = {alias: nest(own) for alias, own in tensors.items()}
    plan = bs.load({"inputs": [f"{alias}::{alias}" for alias in ALIASES], "transforms": [{"merge": TIES}],
                    "output": {"path": "out.safetensors", "alias": "m"}})  # fmt: skip
    made = plan.apply(**trees)
    for name, x in wanted.items():
        np.testing.assert_array_equal(reduce(getitem, name.split("."), made), x)
