"""What `plan.apply` refuses, and what it says."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from tests import checkpoints


def plan(*steps: Any, **keys: Any) -> bs.Plan:
    return bs.load({"inputs": ["model::given-as-a-tree"], "transforms": list(steps), **keys})


COPY = {"copy": {"from": "a", "to": "b"}}


def test_every_mistake_is_told_at_once():
    with pytest.raises(bs.PlanError, match=r"zz'(.|\n)*'aa'.*Did you mean 'a'"):
        plan({"assert": {"exists": "zz"}}, {"copy": {"from": "aa", "to": "c"}}).apply({"a": np.ones(1)})


def test_a_failing_assert_on_values_names_its_step():
    with pytest.raises(bs.PlanError, match=r"^transforms\[0\]\.assert: assert\.iszero: 'a' is not zero everywhere"):
        plan({"assert": {"iszero": "a"}}).apply({"a": np.ones(1)})


def test_a_matrix_with_nan_is_refused_by_the_factorization_of_it():
    with pytest.raises(bs.PlanError, match="holds NaN or infinity"):
        plan({"phlora_": {"target": "a", "rank": 1}}).apply({"a": np.full((2, 2), np.nan)}, checks="skip")


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(bs.PlanError, match=r"two leaves of the tree 'model' are called 'a\.b'"):
        plan(COPY).apply({"a": {"b": np.ones(1)}, "a.b": np.ones(1)})


TORCH = {
    "float32": torch.arange(3.0),
    "with a gradient": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T),
    "int64": torch.tensor([2**40, 1]),
    "bfloat16": torch.nn.Parameter(torch.arange(3.0).bfloat16()),
    "float8": torch.arange(3.0).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", TORCH)
def test_a_tensor_of_another_library_is_not_passed_by_and_becomes_an_array_as_the_hint_says(kind: str):
    given = TORCH[kind]
    for leaf, name in ((given, "b"), ({"c": given}, r"b\.c")):
        with pytest.raises(bs.PlanError, match=rf"leaf '{name}' of the tree 'model' is a torch\.") as refused:
            plan(COPY).apply({"a": np.ones(1), "b": leaf})
        (made,) = re.findall("`(.*?)`", refused.value.diagnostics[0].hint)
    array = eval(made, {"np": np, "jnp": jnp, "x": given})
    np.testing.assert_array_equal(np.asarray(array, np.float64), given.detach().double().numpy())
    assert str(array.dtype) == str(given.dtype).removeprefix("torch.")
    assert plan({"copy": {"from": "c", "to": "d"}}).apply({"c": array}).keys() == {"c", "d"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_of_torch_is_no_tree_and_its_arrays_are_given_as_the_hint_says(dtype: torch.dtype):
    module = torch.nn.Linear(2, 3).to(dtype)
    copy = plan({"copy": {"from": "weight", "to": "b"}})
    with pytest.raises(bs.PlanError, match=r"the tree 'model' is a torch\.Linear, no array") as refused:
        copy.apply(module)
    (made,) = re.findall("`(.*?)`", refused.value.diagnostics[0].hint)
    found = copy.apply(eval(made, {"np": np, "jnp": jnp, "MODULE": module}))
    np.testing.assert_array_equal(np.asarray(found["b"], np.float32), module.weight.detach().float().numpy())


@pytest.mark.parametrize("tree", [{}, [], "abc", 3.0], ids=str)
def test_a_tree_without_tensors_has_no_match(tree: object):
    with pytest.raises(bs.PlanError, match=r"no tensor matches 'a' in 'model' \(0 tensors\)"):
        plan(COPY).apply(tree)


def test_a_mapping_that_is_no_pytree_becomes_a_dict():
    tree = MappingProxyType({"a": np.ones(1)})
    with pytest.raises(bs.PlanError, match=r"is a builtins\.mappingproxy(.|\n)*Give a dict of arrays by name"):
        plan(COPY).apply(tree)
    assert sorted(plan(COPY).apply(dict(tree))) == ["a", "b"]


def test_a_checkpoint_is_no_tree_but_gives_one(tmp_path: Path):
    checkpoints.write(tmp_path / "m.safetensors", {"a": np.ones(1, np.float32)})
    checkpoint = bs.open(str(tmp_path / "m.safetensors"))
    with pytest.raises(bs.PlanError, match=r"the tree 'model' is a brainsurgery_jax\.Checkpoint(.|\n)*\.to_pytree\(\)"):
        plan(COPY).apply(checkpoint)
    assert sorted(plan(COPY).apply(checkpoint.to_pytree())) == ["a", "b"]


def test_a_tensor_beside_a_group_of_its_name_is_refused():
    with pytest.raises(bs.PlanError, match=r"'a' is a tensor and the prefix of 'a\.b'(.|\n)*like=tree"):
        plan({"copy": {"from": "a", "to": "a.b"}}).apply({"a": np.ones(1)})


def test_a_tensor_cannot_take_the_name_of_a_leaf_that_is_no_array():
    with pytest.raises(bs.PlanError, match="'b' is a leaf of the tree that is no array"):
        plan(COPY).apply({"a": np.ones(1), "b": "text"})


def test_like_lists_every_leaf_that_does_not_fit():
    like = {"a": np.ones(2), "c": np.ones(1)}
    with pytest.raises(bs.PlanError, match=r"'a' is f64\[1\], but f64\[2\](.|\n)*has a leaf 'c'(.|\n)*makes 'b'"):
        plan(COPY).apply({"a": np.ones(1)}, like=like)


def test_an_input_is_not_given_twice():
    with pytest.raises(TypeError, match="'model' is given twice"):
        plan(COPY).apply({"a": np.ones(1)}, model={"a": np.ones(1)})


def test_a_tree_for_no_input_is_refused_before_a_file_is_read_in_its_place():
    two = bs.load({"inputs": ["base::x", "tuned::y"], "transforms": [{"delete": {"target": "base::a"}}]})
    with pytest.raises(bs.PlanError, match=r"no input 'tunned'\. Did you mean 'tuned'"):
        two.apply({"a": np.ones(1)}, tunned={})


def test_a_missing_file_is_named_where_its_input_is_not_given():
    with pytest.raises(bs.PlanError, match="given-as-a-tree"):
        plan(COPY).apply()


def test_it_must_be_clear_which_tree_is_returned():
    steps = [{"copy": {"from": "x::a", "to": "x::b"}}, {"copy": {"from": "y::a", "to": "y::b"}}]
    two = bs.load({"inputs": ["x::x", "y::y"], "transforms": steps})
    with pytest.raises(bs.PlanError, match="apply: which alias should be written"):
        two.apply({"a": np.ones(1)}, y={"a": np.ones(1)})


def test_an_unknown_choice_of_checks_is_refused():
    maybe: Any = "maybe"
    with pytest.raises(ValueError, match="checks: expected 'raise', 'return' or 'skip', got 'maybe'"):
        plan(COPY).apply({"a": np.ones(1)}, checks=maybe)
