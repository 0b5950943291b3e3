"""Flax modules filled from files, and pytrees written to files, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from flax import linen, nnx

import brainsurgery_jax as bs
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from tests.checkpoints import bits, counting, normal, read, write


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer.dense(x)
        return self.norm(x, use_running_average=True)


@pytest.fixture
def model() -> Model:
    return Model(nnx.Rngs(0))


PLACES = ["m.safetensors", "folder/", "m.npz", "m.pt", "orbax"]


def placed(path: Path, name: str) -> dict[str, Any]:
    return {"path": str(path / name) + "/" * name.endswith("/"), "format": "orbax" if name == "orbax" else None}


@pytest.mark.parametrize("name", PLACES)
def test_a_module_comes_back_from_every_format(tmp_path: Path, model: Model, name: str) -> None:
    place = placed(tmp_path, name)
    bs.save(**place, tree=nnx.state(model, (nnx.Param, nnx.BatchStat)), durable=False)
    other = Model(nnx.Rngs(1))
    x = jnp.ones((2, 3))
    assert not np.array_equal(other(x), model(x))
    found = bs.open(place["path"]).to_nnx(other)
    np.testing.assert_array_equal(found(x), model(x))
    assert not np.array_equal(other(x), model(x))


def test_an_abstract_module_is_filled_without_ever_being_initialised(tmp_path: Path) -> None:
    tensors = {"kernel": normal((3, 4)), "bias": normal((4,))}
    write(tmp_path / "m.safetensors", tensors)
    abstract = nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    found = bs.open(str(tmp_path / "m.safetensors")).to_nnx(abstract)
    np.testing.assert_allclose(found(jnp.eye(3)), tensors["kernel"] + tensors["bias"], rtol=1e-6)


def test_leaves_go_where_an_abstract_leaf_says(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"w": normal((4,))})
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    wanted = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    template = {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=wanted)}
    assert bs.open(str(tmp_path / "m.safetensors")).to_linen(template)["w"].sharding == wanted


def test_everything_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"kernal": normal((3, 4)), "bias": normal((5,))})
    with pytest.raises(PlanError) as caught:
        bs.open(str(tmp_path / "m.safetensors")).to_nnx(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    text = str(caught.value)
    assert "has no tensor 'kernel', for which the model has a leaf. Did you mean 'kernal'?" in text
    assert "'kernal' is a tensor for which the model has no leaf. Did you mean 'kernel'?" in text
    assert "'bias' is f32[5], but f32[4] in the model" in text
    assert len(caught.value.diagnostics) == 3


def test_dtypes_differ_only_if_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"w": counting((3,), np.float64)})
    checkpoint = bs.open(str(tmp_path / "m.safetensors"))
    template = {"w": jnp.zeros(3, jnp.bfloat16)}
    with pytest.raises(PlanError, match=r"'w' is f64\[3\], but bf16\[3\] in the template. With `cast=True` it is cast"):
        checkpoint.to_linen(template)
    assert checkpoint.to_linen(template, cast=True)["w"].dtype == jnp.bfloat16
    assert checkpoint.to_linen()["w"].dtype == np.float64


@pytest.mark.parametrize("name", PLACES)
def test_variables_of_linen_come_back_in_their_structure(tmp_path: Path, name: str) -> None:
    variables = linen.Dense(4).init(jax.random.key(0), jnp.ones((1, 3)))
    place = placed(tmp_path, name)
    bs.save(**place, tree=variables, durable=False)
    checkpoint = bs.open(place["path"])
    assert sorted(checkpoint) == ["params.bias", "params.kernel"]
    for found in (checkpoint.to_linen(), checkpoint.to_linen(variables)):
        assert jax.tree.structure(found) == jax.tree.structure(variables)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, variables))


def test_optimizer_states_are_trees_like_others(tmp_path: Path) -> None:
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    state = optax.adam(1e-3).init(params)
    bs.save(str(tmp_path / "m.npz"), state, durable=False)
    checkpoint = bs.open(str(tmp_path / "m.npz"))
    assert list(checkpoint) == ["0.count", "0.mu.w", "0.nu.w"]
    found = checkpoint.to_linen(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)


def test_lists_and_integer_keys_come_back_from_orbax(tmp_path: Path) -> None:
    import orbax.checkpoint.experimental.v1 as ocp

    tree = {"layers": [{"w": counting((2,))}, {"w": counting((2,))}], "by": {3: counting((1,))}}
    bs.save(str(tmp_path / "o"), tree, format="orbax", durable=False)
    again = str(tmp_path / "again")
    plan = {"inputs": [str(tmp_path / "o")], "transforms": [], "output": {"path": again, "format": "orbax"}}
    bs.load(plan).run(durable=False)
    for path in (tmp_path / "o", again):
        found = ocp.load(str(path))
        assert isinstance(found, dict) and isinstance(found["layers"], list)
        assert bits(found["layers"][1]["w"]) == bits(counting((2,)))


def test_sliced_transposed_and_foreign_arrays_are_written_as_they_read(tmp_path: Path) -> None:
    x = normal((4, 6))
    tree = {"t": x.T, "rows": x[::2], "big": x.astype(">f4"), "scalar": np.float32(3), "jax": jnp.arange(3)}
    bs.save(str(tmp_path / "m.safetensors"), tree, metadata={"note": "kept"}, durable=False)
    found = read(tmp_path / "m.safetensors")
    assert bits(found["t"]) == bits(np.ascontiguousarray(x.T))
    assert (bits(found["rows"]), bits(found["big"])) == (bits(x[::2]), bits(x))
    assert (found["scalar"].shape, found["jax"].tolist()) == ((), [0, 1, 2])
    assert bs.open(str(tmp_path / "m.safetensors")).metadata["note"] == "kept"


@pytest.mark.parametrize(
    ("tree", "path", "message"),
    [
        ({"name": "run", "w": np.ones(2)}, "m.npz", r"save: 'name' is a str, no array"),
        ({"act": len, "w": np.ones(2)}, "m.npz", r"save: 'act' is a builtin_function_or_method, no array"),
        ({"z": np.ones(2, np.complex128)}, "m.safetensors", r"safetensors has no dtype complex128"),
        ({}, "m.npz", r"the tree has no leaves"),
        ({"w": np.ones(2)}, "m.gguf", r"ends in '?\.gguf"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    tmp_path: Path, tree: Any, path: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        bs.save(str(tmp_path / path), tree)
    assert not list(tmp_path.iterdir())


def test_keys_of_random_numbers_are_saved_as_their_numbers(tmp_path: Path, model: Model) -> None:
    bs.save(str(tmp_path / "m.npz"), nnx.state(model))
    found = bs.open(str(tmp_path / "m.npz"))
    kinds = {name: kind.word for name, kind in found.source.header.tree.types.items()}
    assert set(kinds.values()) == {"key<fry>"}
    assert all(found[name].dtype == np.uint32 for name in kinds)


def test_python_numbers_are_arrays_without_axes(tmp_path: Path) -> None:
    bs.save(str(tmp_path / "m.npz"), {"step": 3, "rate": 0.5, "done": True, "w": np.ones(2)})
    found = bs.open(str(tmp_path / "m.npz"))
    assert {name: found[name].item() for name in ("step", "rate", "done")} == {"step": 3, "rate": 0.5, "done": True}


def test_an_abstract_module_with_dropout_is_refused_and_a_real_one_keeps_its_stream(tmp_path: Path) -> None:
    def make() -> nnx.Module:
        return nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))

    bs.save(str(tmp_path / "m.safetensors"), nnx.state(make(), nnx.Param))
    checkpoint = bs.open(str(tmp_path / "m.safetensors"))
    with pytest.raises(bs.PlanError, match=r"random streams(.|\n)*`to_nnx\(make\(\)\)`"):
        checkpoint.to_nnx(nnx.eval_shape(make))
    assert checkpoint.to_nnx(make())(jnp.ones((1, 2))).shape == (1, 2)


def test_messages_about_a_tree_tell_no_places_in_a_plan_that_nobody_wrote(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        bs.save(str(tmp_path / "out/"), {"w": np.ones(2)}, layout="flax-gpt2", config=CONFIG)
    assert "<mapping>" not in str(caught.value)
    assert "not those of the target side of flax-gpt2" in str(caught.value)


def test_what_is_there_is_replaced_only_if_that_is_said(tmp_path: Path) -> None:
    path = str(tmp_path / "m.npz")
    bs.save(path, {"w": np.ones(2)}, durable=False)
    with pytest.raises((PlanError, StoreError), match=r"exists already[^$]*`overwrite=True`"):
        bs.save(path, {"w": np.zeros(2)}, durable=False)
    bs.save(path, {"w": np.zeros(2)}, overwrite=True, durable=False)
    assert bs.open(path)["w"].tolist() == [0, 0]


def test_files_of_the_working_folder_do_not_come_along(here: Path) -> None:
    (here / "config.json").write_text("{}")
    bs.save("out/", {"w": np.ones(2)}, durable=False)
    assert [p.name for p in (here / "out").iterdir()] == ["model.safetensors"]


# --- Layouts ----------------------------------------------------------------------------------------------------------

CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_embd": 4, "n_head": 2, "vocab_size": 7, "n_positions": 5}


def gpt2() -> Iterator[tuple[str, np.ndarray]]:
    shapes = {
        "ln_1.weight": (4,), "ln_1.bias": (4,), "attn.c_attn.weight": (4, 12), "attn.c_attn.bias": (12,),
        "attn.c_proj.weight": (4, 4), "attn.c_proj.bias": (4,), "ln_2.weight": (4,), "ln_2.bias": (4,),
        "mlp.c_fc.weight": (4, 16), "mlp.c_fc.bias": (16,), "mlp.c_proj.weight": (16, 4), "mlp.c_proj.bias": (4,),
    }  # fmt: skip
    yield from {"wte.weight": normal((7, 4)), "wpe.weight": normal((5, 4))}.items()
    yield from ((f"h.{i}.{name}", normal(shape, seed=i)) for i in range(2) for name, shape in shapes.items())
    yield from {"ln_f.weight": normal((4,)), "ln_f.bias": normal((4,))}.items()


def test_a_layout_leads_from_a_file_into_a_tree_and_back(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    tensors = dict(gpt2())
    write(tmp_path / "hf" / "model.safetensors", tensors)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = bs.open(str(tmp_path / "hf"))
    tree = checkpoint.to_linen(layout="flax-gpt2")
    assert set(tree) != set(checkpoint.to_linen())
    config = str(tmp_path / "hf" / "config.json")
    options = {"base": ""}  # the names are those of the base model
    back_to = str(tmp_path / "back")
    bs.save(f"{back_to}/", tree, layout="flax-gpt2", config=config, layout_options=options, durable=False)
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["config.json", "model.safetensors"]
    back = bs.open(back_to)
    assert {name: bits(back[name]) for name in back} == {name: bits(array) for name, array in tensors.items()}
    part = checkpoint.select(r"(?!ln_f\.bias).*")
    with pytest.raises(PlanError, match=r"missing \(1\): 'ln_f\.bias'"):
        part.to_linen(layout="flax-gpt2")


# --- One mistake, one message -----------------------------------------------------------------------------------------


def hf(folder: Path) -> bs.Checkpoint:
    """A small GPT-2 with its config.json."""
    (folder / "hf").mkdir()
    write(folder / "hf" / "model.safetensors", dict(gpt2()))
    (folder / "hf" / "config.json").write_text(json.dumps(CONFIG))
    return bs.open(str(folder / "hf"))


def complaint(call: Callable[[], Any]) -> Diagnostic:
    """The one message of a call that is refused."""
    with pytest.raises(PlanError) as caught:
        call()
    (found,) = caught.value.diagnostics
    return found


def test_a_layout_fills_variables_with_their_collection_and_without(tmp_path: Path) -> None:
    checkpoint = hf(tmp_path)
    variables = checkpoint.to_linen(layout="flax-gpt2")
    for template in (variables, variables["params"]):
        found = checkpoint.to_linen(template, layout="flax-gpt2")
        assert jax.tree.structure(found) == jax.tree.structure(template)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, template))


def test_names_below_a_key_that_the_module_does_not_have_are_one_mistake(tmp_path: Path, model: Model) -> None:
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    bs.save(str(tmp_path / "m.npz"), {"params": state}, durable=False)
    checkpoint = bs.open(str(tmp_path / "m.npz"))
    found = complaint(lambda: checkpoint.to_nnx(model))
    assert found.message.endswith(
        "the names of its 8 tensors begin with 'params.', those of the 8 leaves of the model do not"
    )
    assert found.hint == "Take the parts that fit: `checkpoint.below('params').to_nnx(model)`."
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(checkpoint.below("params").to_nnx(model)(x), model(x))


def test_a_module_around_the_one_that_was_saved_is_one_mistake(tmp_path: Path, model: Model) -> None:
    bs.save(str(tmp_path / "m.npz"), nnx.state(model, (nnx.Param, nnx.BatchStat)), durable=False)
    checkpoint = bs.open(str(tmp_path / "m.npz"))
    outer = nnx.Dict(backbone=model)
    found = complaint(lambda: checkpoint.to_nnx(outer))
    assert found.message.endswith("8 tensors do not, those of the 8 leaves of the model begin with 'backbone.'")
    assert found.hint == "Take the parts that fit: `checkpoint.to_nnx(model.backbone)`."
    assert isinstance(checkpoint.to_nnx(outer.backbone), Model)


def test_the_template_of_another_collection_is_one_mistake(tmp_path: Path) -> None:
    variables = linen.Dense(4).init(jax.random.key(0), jnp.ones((1, 3)))
    bs.save(str(tmp_path / "m.npz"), {"old": variables["params"]}, durable=False)
    found = complaint(lambda: bs.open(str(tmp_path / "m.npz")).to_linen(variables))
    assert found.hint == "Take the parts that fit: `checkpoint.below('old').to_linen(template['params'])`."
    assert set(bs.open(str(tmp_path / "m.npz")).below("old").to_linen(variables["params"])) == {"kernel", "bias"}


def test_a_dtype_that_all_leaves_lack_is_one_mistake(tmp_path: Path, model: Model) -> None:
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model, (nnx.Param, nnx.BatchStat)))
    bs.save(str(tmp_path / "m.npz"), state, durable=False)
    found = complaint(lambda: bs.open(str(tmp_path / "m.npz")).to_nnx(model))
    assert "is bf16[3], but f32[3] in the model (and 7 more alike). With `cast=True` they are cast" in found.message


def test_layers_that_are_missing_are_one_message_for_each_kind_of_tensor(tmp_path: Path) -> None:
    layer = {"kernel": normal((3, 3)), "bias": normal((3,))}
    write(tmp_path / "m.safetensors", {f"h.{i}.{name}": x for i in range(2) for name, x in layer.items()})
    template = {"h": [layer] * 5}
    with pytest.raises(PlanError) as caught:
        bs.open(str(tmp_path / "m.safetensors")).to_linen(template)
    assert [d.message.partition(": ")[2].partition(", for")[0] for d in caught.value.diagnostics] == [
        "has no tensor 'h.2.bias' (and 2 more alike)", "has no tensor 'h.2.kernel' (and 2 more alike)",
    ]  # fmt: skip


def test_a_part_of_a_checkpoint_has_the_names_that_it_has_there(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"a.b.w": normal((2,)), "a.b.v": normal((3,)), "a.c": normal((1,))})
    checkpoint = bs.open(str(tmp_path / "m.safetensors"))
    part = checkpoint.below("a").below("b")
    assert list(part) == ["w", "v"]
    assert bits(part["w"]) == bits(part.select("w")["w"]) == bits(normal((2,)))
    with pytest.raises(KeyError, match=r"nothing lies below 'a\.d' in .*Did you mean 'a\.b'\?"):
        checkpoint.below("a.d")


def test_a_result_below_other_keys_than_like_has_is_one_mistake() -> None:
    tree = {"a": {"w": normal((2,)), "v": normal((2,))}}
    plan: dict[str, Any] = {"inputs": ["m::x"], "transforms": []}
    like = {"b": {"c": tree["a"]}}
    found = complaint(lambda: bs.load(plan).apply(tree, like=like))
    assert found.message.endswith("the plan makes begin with 'a.', those of the leaves of `like` begin with 'b.c.'")
    (step,) = yaml.safe_load(found.hint.removeprefix("Add the step `").removesuffix("`."))
    made = bs.load(plan | {"transforms": [step]}).apply(tree, like=like)
    assert bits(made["b"]["c"]["w"]) == bits(normal((2,)))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_a_layout_tells_of_a_prefix_once_and_how_to_take_it_away(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    source = str(write(tmp_path / "m.safetensors", {f"{prefix}{name}": x for name, x in gpt2()}))
    layout = {"layout": {"name": "flax-gpt2", "config": str(tmp_path / "config.json")}}
    plan = {"inputs": [source], "transforms": [layout], "output": str(tmp_path / "out.npz")}
    found = complaint(bs.load(plan).check)
    assert found.hint.startswith(f"28 names begin with '{prefix}', where none is expected: in a plan, `- move: ")
    assert len(found.hint.splitlines()) == 1
    (step,) = yaml.safe_load(found.hint.partition("`")[2].partition("`")[0])
    bs.load(plan | {"transforms": [step, layout]}).run(durable=False)
    assert "params.wte.embedding" in bs.open(str(tmp_path / "out.npz"))
