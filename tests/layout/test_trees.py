"""Layouts whose library has several trees of the same weights, or joins the parts of names by slashes."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import brainsurgery_jax as bs
from brainsurgery_jax.layout.library import layout_names, load_layout
from brainsurgery_jax.nametree import nest
from tests.behaviour import tiny
from tests.checkpoints import bits, read, write

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

TREES = {"linen": ("params.params.", ""), "sft": ("", ".value"), "rl": ("base.", ".value")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def leaves(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The leaves of MaxText's tree, without what differs from tree to tree."""
    out = tmp_path_factory.mktemp("made") / "maxtext"
    bs.convert(str(model), str(out), layout="maxtext", durable=False)
    made = bs.open(str(out))
    return {name.removeprefix("params.params."): np.asarray(made[name]) for name in made}


def assert_the_original(found: Path, model: Path) -> None:
    wanted, there = read(model / "model.safetensors"), read(found / "model.safetensors")
    assert there.keys() == wanted.keys()
    assert all(bits(there[name]) == bits(x) for name, x in wanted.items())


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_of_another_source_is_told_by_its_names(
    tree: str, model: Path, leaves: dict[str, np.ndarray], tmp_path: Path
) -> None:
    start, end = TREES[tree]
    held = {f"{start}{name}{end}": x for name, x in leaves.items()}
    if tree != "linen":  # what NNX keeps of random numbers is no weight
        held |= {f"{start}decoder.dropout.rngs.params.key{end}": np.zeros(2, np.uint32),
                 f"{start}decoder.to_nnx__rngs.count{end}": np.zeros((), np.uint32)}  # fmt: skip
    source = write(tmp_path / "trained.safetensors", held)
    config = str(model / "config.json")
    bs.convert(str(source), str(tmp_path / "hf"), layout="maxtext", config=config, durable=False)
    assert_the_original(tmp_path / "hf", model)


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_that_is_asked_for_is_made_and_comes_back(
    tree: str, model: Path, leaves: dict[str, np.ndarray], tmp_path: Path
) -> None:
    start, end = TREES[tree]
    bs.convert(str(model), str(tmp_path / "made"), layout="maxtext", options={"tree": tree}, durable=False)
    assert {*bs.open(str(tmp_path / "made"))} == {f"{start}{name}{end}" for name in leaves}
    bs.convert(str(tmp_path / "made"), str(tmp_path / "hf"), durable=False)
    assert_the_original(tmp_path / "hf", model)


def test_a_tree_that_is_not_there_is_refused_with_those_that_are(model: Path, tmp_path: Path) -> None:
    with pytest.raises(bs.PlanError, match=r"has no tree 'rll'\. Did you mean 'rl'") as refused:
        bs.convert(str(model), str(tmp_path / "made"), layout="maxtext", options={"tree": "rll"})
    hint = refused.value.diagnostics[0].hint
    assert hint == "Trees of maxtext-qwen3: linen, sft, rl."
    named = hint.rstrip(".").split(": ")[1].split(", ")
    bs.convert(str(model), str(tmp_path / "made"), layout="maxtext", options={"tree": named[-1]}, durable=False)


def test_every_layout_for_maxtext_has_these_trees() -> None:
    assert all([*load_layout(n).forms] == [*TREES] for n in layout_names() if n.startswith("maxtext"))


@pytest.mark.parametrize("name", ["vit.npz", "vit"])
def test_names_have_slashes_in_an_npz_and_are_nested_elsewhere(name: str, tmp_path: Path) -> None:
    model = tiny.save("vit", tmp_path / "hf")
    bs.convert(str(model), str(tmp_path / name), layout="bigvision", to=None if "." in name else "orbax", durable=False)
    mark = "/" if "." in name else "."
    assert f"Transformer{mark}encoderblock_0{mark}LayerNorm_0{mark}scale" in bs.open(str(tmp_path / name))
    bs.convert(str(tmp_path / name), str(tmp_path / "back"), durable=False)
    assert_the_original(tmp_path / "back", model)


def test_a_plan_that_goes_back_writes_the_config_that_it_was_given(
    model: Path, leaves: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    tree = write(tmp_path / "alone" / "tree.safetensors", {f"params.params.{name}": x for name, x in leaves.items()})
    step = {"name": "maxtext-qwen3", "config": str(model / "config.json"), "inverse": True}
    cast = {"cast_": {"target": ".*", "to": "bfloat16"}}
    plan = {"inputs": [str(tree)], "transforms": [{"layout": step}, cast], "output": f"{tmp_path / 'hf'}/"}
    bs.load(plan).run(durable=False)
    wanted = json.loads((model / "config.json").read_text())
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == wanted | {"dtype": "bfloat16"}


def test_a_config_beside_the_tree_stays(model: Path, leaves: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    write(folder / "model.safetensors", {f"params.params.{name}": x for name, x in leaves.items()})
    own = json.loads((model / "config.json").read_text()) | {"architectures": ["Mine"]}
    (folder / "config.json").write_text(json.dumps(own))
    step = {"name": "maxtext-qwen3", "config": str(model / "config.json"), "inverse": True}
    bs.load({"inputs": [str(folder)], "transforms": [{"layout": step}], "output": f"{tmp_path / 'hf'}/"}).run()
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == own


@pytest.mark.parametrize("tree", ["sft", "rl"])
def test_a_tree_that_orbax_saved_of_a_module_goes_back(
    tree: str, model: Path, leaves: dict[str, np.ndarray], tmp_path: Path
) -> None:
    start = TREES[tree][0]
    held = {f"{start}{name}": nnx.Param(jnp.asarray(x)) for name, x in leaves.items()}
    held[f"{start}decoder.dropout.rngs.params.count"] = nnx.Param(jnp.zeros((), np.uint32))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", nest(held))
    assert {*bs.open(str(tmp_path / "tree"))} == held.keys()  # without the key `value` of variables
    config = str(model / "config.json")
    bs.convert(str(tmp_path / "tree"), str(tmp_path / "hf"), layout="maxtext", config=config, durable=False)
    assert_the_original(tmp_path / "hf", model)
