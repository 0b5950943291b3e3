"""`plan.apply` on trees of every kind: how leaves are called, and in what structure they come back."""

from __future__ import annotations

import json
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

import brainsurgery_jax as bs
from brainsurgery_jax.documents import Document
from brainsurgery_jax.rendering.text import as_text
from tests.checkpoints import same

HALVE = {"scale_": {"target": r".*(kernel|weight)", "by": 0.5}}
NEGATE = {"scale_": {"target": ".*", "by": -1}}


def plan(*steps: Any, **keys: Any) -> bs.Plan:
    return bs.load({"inputs": ["model::given-as-a-tree"], "transforms": list(steps), **keys})


def names(tree: Any) -> dict[str, Any]:
    """What a plan sees of a tree, as `dump` draws it."""
    reports: list[Document] = []
    plan({"dump": {"format": "json"}}).apply(tree, listen=reports.append)
    return json.loads(as_text(reports[0]))["model"]


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def test_names_follow_dicts_lists_and_tuples():
    tree = {"h": [{"w": np.ones(1)}, (np.ones(2), np.ones(3))]}
    assert names(tree) == {"h": [{"w": {"shape": [1]}}, [{"shape": [2]}, {"shape": [3]}]]}


def test_a_tree_with_lists_and_tuples_keeps_its_structure():
    out = plan(NEGATE).apply({"h": [np.ones(1), (np.ones(2), np.ones(3))]})
    assert jax.tree.map(np.ndim, out) == {"h": [1, (1, 1)]}


def test_an_nnx_state_is_called_as_the_module_is_and_the_model_runs_on():
    model = Net(nnx.Rngs(0))
    graph, state = nnx.split(model)
    steps = [{"scale_": {"target": r"layers\.1\.kernel", "by": 2}}, {"scale_": {"target": r"layers\.1\.bias", "by": 2}}]
    doubled = nnx.merge(graph, plan(*steps).apply(state))
    x = jnp.ones((1, 2))
    assert same(doubled(x), 2 * model(x))


def test_an_nnx_state_comes_back_as_an_nnx_state_with_its_kinds_of_variables():
    state = nnx.state(Net(nnx.Rngs(0)))
    out = plan(HALVE).apply(state)
    assert jax.tree.structure(out) == jax.tree.structure(state)
    assert isinstance(out["layers"][0]["kernel"], nnx.Param)


def test_an_nnx_state_is_not_changed_in_place():
    state = nnx.state(Net(nnx.Rngs(0)))
    before = jax.tree.map(np.array, nnx.to_pure_dict(state))
    plan(NEGATE).apply(state)
    assert jax.tree.all(jax.tree.map(same, before, nnx.to_pure_dict(state)))


def test_an_nnx_state_grows_into_the_structure_of_a_larger_model():
    class Deep(Net):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])

    small: Any = nnx.state(Deep(nnx.Rngs(0)))
    wide = Deep(nnx.Rngs(1))
    wide.layers.append(nnx.Linear(2, 2, rngs=nnx.Rngs(2)))
    graph, like = nnx.split(wide)
    step = {"copy": {"from": r"layers\.1\.(.*)", "to": r"layers.2.\1"}}
    out = plan(step).apply(small, like=like)
    assert same(out["layers"][2]["kernel"].get_value(), small["layers"][1]["kernel"].get_value())
    assert nnx.merge(graph, out)(jnp.ones((1, 2))).shape == (1, 2)


def test_linen_parameters_keep_their_structure_and_their_model():
    model: Any = nn.Dense(3)
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    out = plan(HALVE).apply(variables)
    x = jnp.ones((1, 2))
    assert same(model.apply(out, x), model.apply(variables, x) * 0.5)


def test_a_frozen_dict_comes_back_frozen():
    out = plan(NEGATE).apply(FrozenDict({"params": {"w": np.ones(1)}}))
    assert isinstance(out, FrozenDict)


def test_a_partitioned_linen_parameter_is_called_without_its_box():
    init = nn.with_partitioning(nn.initializers.ones, (None, "m"))
    tree = nn.Dense(3, kernel_init=init, use_bias=False).init(jax.random.key(0), jnp.ones((1, 2)))
    assert names(tree) == {"params": {"kernel": {"shape": [2, 3]}}}


def test_an_equinox_module_keeps_its_functions_and_static_fields():
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    out = plan({"scale_": {"target": r"layers\.1\..*", "by": 3}}).apply(mlp)
    x = jnp.ones(2)
    assert out.activation is mlp.activation and out.layers[0].weight is mlp.layers[0].weight
    np.testing.assert_allclose(out(x), 3 * mlp(x), rtol=1e-6)


def test_a_field_called_value_keeps_its_name_outside_of_flax():
    class Gate(eqx.Module):
        value: Any

    assert names({"g": Gate(np.ones(2))}) == {"g": {"value": {"shape": [2]}}}


def test_leaves_that_are_no_arrays_pass_through_a_renaming():
    out = plan({"move": {"from": "a", "to": "b.c"}}).apply({"a": np.ones(1), "name": "net", "depth": 3})
    assert out["name"] == "net" and out["depth"] == 3 and list(out["b"]) == ["c"]


def test_changed_names_come_back_in_the_containers_that_they_came_in():
    tree = {"h": [{"w": np.ones(1)}], "opt": (None, {"m": np.ones(1)}), "e": {}}
    out = plan({"move": {"from": r"h\.(.)\.w", "to": r"block.\1.kernel"}}).apply(tree)
    assert out == {"block": [{"kernel": np.ones(1)}], "opt": (None, {"m": np.ones(1)}), "e": {}}
    out = plan({"copy": {"from": r"opt\.(.*)", "to": r"state.\1"}}).apply(tree)
    assert out["state"][0] is None
    assert (type(out["state"]), list(out["state"][1])) == (tuple, ["m"])


def test_names_that_came_from_no_container_are_nested_dicts():
    out = plan({"move": {"from": "w", "to": "block.0.kernel"}}).apply({"w": np.ones(1), "b": np.ones(1)})
    assert out == {"block": {"0": {"kernel": np.ones(1)}}, "b": np.ones(1)}


def test_a_flat_state_dict_stays_flat():
    out = plan({"copy": {"from": "h.0", "to": "h.0.b"}}).apply({"h.0": np.ones(1)})
    assert list(out) == ["h.0", "h.0.b"]


def test_like_gives_the_structure_of_the_result():
    like = {"b": [jax.ShapeDtypeStruct((1,), jnp.float32)], "tag": "kept"}
    out = plan({"move": {"from": "a", "to": "b.0"}}).apply({"a": np.ones(1, np.float32)}, like=like)
    assert out == {"b": [np.ones(1)], "tag": "kept"}


def test_several_trees_are_given_by_alias_and_the_written_one_is_returned():
    step = {"subtract_": {"from": r"base::(.*)", "to": r"tuned::\1"}}
    both = bs.load({"inputs": ["base::a", "tuned::b"], "transforms": [step]})
    out = both.apply({"w": np.ones(2)}, tuned={"w": np.full(2, 5.0)})
    assert out["w"].tolist() == [4, 4]


@pytest.mark.parametrize(("word", "names"), [("keep", ["v", "w", "x"]), ("drop", ["v", "w"])])
def test_trees_that_do_not_pair_up_need_a_word(word: str, names: list[str]):
    step = {"from": {"a": "base::.*", "b": r"tuned::\g<0>"}, "expr": "a + b"}
    base, tuned = {"w": np.ones(2), "v": np.ones(2)}, {"w": np.full(2, 5.0), "x": np.full(2, 7.0)}
    inputs = {"inputs": ["base::a", "tuned::b"]}
    with pytest.raises(bs.PlanError, match="the sets do not pair up"):
        bs.load({**inputs, "transforms": [{"compute": step}]}).apply(base, tuned=tuned)
    plan = bs.load({**inputs, "transforms": [{"compute": {**step, "unmatched": word}}]})
    for out in (plan.apply(base, tuned=tuned), jax.jit(lambda a, b: plan.apply(a, tuned=b))(base, tuned)):
        assert sorted(out) == names
        assert out["w"].tolist() == [6, 6]
        assert out["v"].tolist() == [1, 1]


def test_the_alias_of_the_output_is_returned():
    steps = [{"copy": {"from": "base::w", "to": "tuned::v"}}, {"copy": {"from": "base::w", "to": "base::u"}}]
    both = bs.load({"inputs": ["base::a", "tuned::b"], "transforms": steps, "output": {"path": "x", "alias": "base"}})
    assert sorted(both.apply({"w": np.ones(2)}, tuned={})) == ["u", "w"]


def test_a_plan_without_inputs_calls_the_positional_tree_model():
    bare = bs.load({"transforms": [{"copy": {"from": "a", "to": "model::b"}}]})
    assert sorted(bare.apply({"a": np.ones(1)})) == ["a", "b"]


@pytest.mark.parametrize(
    ("step", "changed"),
    [
        ({"scale_": {"target": "w::[:, :2]", "by": 2}}, [[2, 2, 1], [2, 2, 1]]),
        ({"scale_": {"target": "w::[0]", "by": 2}}, [[2, 2, 2], [1, 1, 1]]),
        ({"scale_": {"target": "w::[::2]", "by": 2}}, [[2, 2, 2], [1, 1, 1]]),
        ({"scale_": {"target": {"name": "w", "slice": "[0]"}, "by": 2}}, [[2, 2, 2], [1, 1, 1]]),
        ({"assign": {"from": "v::[0]", "to": "w::[1]"}}, [[1, 1, 1], [0, 0, 0]]),
        ({"compute": {"from": {"x": "w::[0]"}, "expr": "x * 3"}}, [[3, 3, 3], [1, 1, 1]]),
    ],
)
def test_slices_need_no_alias_in_a_plan_without_inputs(step: Any, changed: Any):
    out = bs.load({"transforms": [step]}).apply({"w": np.ones((2, 3)), "v": np.zeros((2, 3))})
    assert same(out["w"], np.array(changed, float))


def test_a_plan_without_inputs_asserts_on_slices():
    checked = bs.load({"transforms": [{"assert": {"iszero": "w::[:, 1:]"}}]})
    checked.apply({"w": np.eye(2)[:1]})
    with pytest.raises(bs.PlanError, match="'w' is not zero"):
        checked.apply({"w": np.eye(2)})


def test_keys_that_every_step_has_are_known_in_a_plan_without_inputs():
    steps = [{"delete": {"target": "gone", "if_missing": "skip"}}, {"scale_": {"target": "w", "by": 2}}]
    assert same(bs.load({"transforms": steps}).apply({"w": np.ones(2)})["w"], np.full(2, 2.0))


def test_a_plan_that_writes_nothing_returns_the_tree():
    tree = {"a": np.ones(1)}
    assert plan({"assert": {"exists": "a"}}).apply(tree)["a"] is tree["a"]


def test_shape_structs_are_checked_and_come_back_as_shape_structs():
    tree = {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16), "b": jax.ShapeDtypeStruct((2,), jnp.float32)}
    out = plan({"permute": {"from": "w", "to": "t", "order": [1, 0]}}, {"delete": {"target": "w"}}).apply(tree)
    assert out["b"] is tree["b"]
    assert out["t"] == jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)


def test_shape_structs_of_64_bits_keep_them():
    out = plan(NEGATE).apply({"w": jax.ShapeDtypeStruct((4,), np.dtype("float64"))})
    assert out["w"].dtype == np.float64


def test_shape_structs_show_mistakes_without_any_array():
    with pytest.raises(bs.PlanError, match="shapes differ"):
        tree = {k: jax.ShapeDtypeStruct((n,), jnp.float32) for k, n in (("a", 2), ("b", 3))}
        plan({"add_": {"from": "a", "to": "b"}}).apply(tree)


@pytest.mark.parametrize("tree", [{}, [], ()])
def test_an_empty_tree_is_filled(tree: object):
    made = plan({"rand": {"target": "v", "shape": [2]}}).apply(tree)
    assert list(made) == ["v"]
