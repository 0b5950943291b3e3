"""Models filled with what fits: leaves that are kept, tensors that are ignored, and streams that are passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, PartitionSpec

import brainsurgery_jax as bs
from brainsurgery_jax.documents import Document, Facts
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import normal, write

KERNEL, BIAS = normal((2, 3)), normal((3,))


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a = nnx.Linear(2, 3, rngs=rngs)
        self.head = nnx.Linear(3, 1, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


@pytest.fixture
def model() -> Model:
    return Model(nnx.Rngs(0))


def opened(folder: Path, **more: np.ndarray) -> bs.Checkpoint:
    return bs.open(str(write(folder / "m.safetensors", {"a.kernel": KERNEL, "a.bias": BIAS, **more})))


def plan(*steps: Any) -> bs.Plan:
    return bs.load({"inputs": ["model::a-tree"], "transforms": list(steps)})


LISTED = Facts(
    "to_nnx",
    (("taken", ("a.bias", "a.kernel")), ("kept", ("head.bias", "head.kernel")), ("ignored", ("old",))),
)


def test_whatever_fits_is_taken_and_the_list_of_it_is_told(tmp_path: Path, model: Model) -> None:
    told: list[Document] = []
    found = opened(tmp_path, old=BIAS).to_nnx(model, missing="keep", extra="ignore", listen=told.append)
    np.testing.assert_array_equal(found.a.kernel[...], KERNEL)
    np.testing.assert_array_equal(found.head.kernel[...], model.head.kernel[...])
    assert told == [LISTED]


def test_without_a_listener_what_is_kept_and_ignored_is_logged(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, old=BIAS).to_nnx(model, missing="keep", extra="ignore")
    ((_, _, text),) = caplog.record_tuples
    assert text == "to_nnx: 2 leaves taken, 2 kept ('head.bias', 'head.kernel'), 1 ignored ('old')"


def test_what_fits_in_all_is_not_logged(model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path).below("a").to_nnx(model.a, missing="keep", extra="ignore")
    assert caplog.record_tuples == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"missing": "keep"}, "'old' is a tensor for which the model has no leaf"),
        ({"extra": "ignore"}, "has no tensor 'head.bias', for which the model has a leaf"),
    ],
)
def test_each_choice_is_about_one_side(tmp_path: Path, model: Model, keys: Any, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        opened(tmp_path, old=BIAS).to_nnx(model, **keys)
    assert {says in d.message for d in caught.value.diagnostics} >= {True}
    others = {"missing": "'head.", "extra": "'old'"}
    assert not any(others[key] in d.message for key in keys for d in caught.value.diagnostics)


def test_shapes_must_agree_whatever_is_kept(tmp_path: Path, model: Model) -> None:
    checkpoint = bs.open(str(write(tmp_path / "m.safetensors", {"a.kernel": BIAS})))
    with pytest.raises(PlanError, match=r"'a\.kernel' is f32\[3\], but f32\[2,3\] in the model"):
        checkpoint.to_nnx(model, missing="keep", extra="ignore")


def test_a_model_of_which_nothing_fits_is_a_mistake(tmp_path: Path, model: Model) -> None:
    checkpoint = bs.open(str(write(tmp_path / "m.safetensors", {"x": BIAS, "y": BIAS})))
    with pytest.raises(PlanError, match="no tensor has the name of a leaf of the model"):
        checkpoint.to_nnx(model, missing="keep", extra="ignore")


def test_a_leaf_without_a_value_cannot_be_kept(tmp_path: Path) -> None:
    abstract = nnx.eval_shape(lambda: nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0)) for _ in range(2)]))
    tensors = {"0.kernel": KERNEL, "0.bias": BIAS}
    checkpoint = bs.open(str(write(tmp_path / "m.safetensors", tensors)))
    with pytest.raises(PlanError, match=r"has no tensor '1\.bias', for which the model has a leaf without a value"):
        checkpoint.to_nnx(abstract, missing="keep")


def test_a_word_that_is_no_choice_is_refused(tmp_path: Path, model: Model) -> None:
    wrong: Any = "maybe"
    with pytest.raises(ValueError, match="missing: expected 'error' or 'keep', got 'maybe'"):
        opened(tmp_path).to_nnx(model, missing=wrong)
    with pytest.raises(ValueError, match="extra: expected 'error' or 'ignore', got 'maybe'"):
        plan().apply({"w": BIAS}, like={"w": BIAS}, extra=wrong)


def test_variables_of_linen_keep_what_a_checkpoint_lacks(tmp_path: Path) -> None:
    template = {"a": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}, "new": BIAS}
    found = opened(tmp_path).to_linen(template, missing="keep")
    assert found["new"] is BIAS
    np.testing.assert_array_equal(found["a"]["kernel"], KERNEL)


def test_the_result_of_a_plan_fills_a_state_whose_streams_stay(model: Model) -> None:
    state = nnx.state(model)
    made = plan({"scale_": {"target": "a.kernel", "by": 2}}).apply(nnx.state(model, nnx.Param), like=state)
    assert jax.tree.structure(made) == jax.tree.structure(state)
    assert made["drop"]["rngs"]["key"][...] is state["drop"]["rngs"]["key"][...]
    np.testing.assert_array_equal(made["a"]["kernel"][...], 2 * model.a.kernel[...])


def test_a_plan_fills_a_tree_with_what_fits() -> None:
    like = {"a": {"kernel": jnp.zeros((2, 3))}, "new": jnp.ones(1)}
    tree = {"a": {"kernel": KERNEL}, "old": BIAS}
    told: list[Document] = []
    made = plan().apply(tree, like=like, missing="keep", extra="ignore", listen=told.append)
    assert made["a"]["kernel"] is KERNEL and made["new"] is like["new"]
    assert told == [Facts("apply", (("taken", ("a.kernel",)), ("kept", ("new",)), ("ignored", ("old",))))]


def test_a_variable_has_one_name_in_memory_and_in_a_file(tmp_path: Path, model: Model) -> None:
    tensors = {"kernel.value": KERNEL, "bias.value": BIAS}  # as older versions of Flax saved them
    checkpoint = bs.open(str(write(tmp_path / "m.safetensors", tensors)))
    told: list[Document] = []
    checkpoint.to_nnx(model.a, listen=told.append)
    made = plan().apply(dict(checkpoint), like=nnx.state(model.a), listen=told.append)
    np.testing.assert_array_equal(made["kernel"][...], KERNEL)
    assert [dict(facts.facts)["taken"] for facts in told if isinstance(facts, Facts)] == [("bias", "kernel")] * 2


def test_streams_that_a_checkpoint_holds_are_passed_over(tmp_path: Path, model: Model) -> None:
    tensors = {"drop.rngs.count": np.ones((), np.uint32)}
    tensors |= {f"{n}.{k}": np.zeros(x.shape, np.float32) for n in ("a", "head")
                for k, x in (("kernel", getattr(model, n).kernel), ("bias", getattr(model, n).bias))}  # fmt: skip
    bs.open(str(write(tmp_path / "m.safetensors", tensors))).to_nnx(model)


# --- Names of axes ----------------------------------------------------------------------------------------------------

MOVED = [
    ({"transpose_": {"target": "w"}}, ("out", "in")),
    ({"permute_": {"target": "w", "order": [1, 0]}}, ("out", "in")),
    ({"scale_": {"target": "w", "by": 2}}, ("in", "out")),
    ({"pad_": {"target": "w", "shape": [5, -1]}}, ("in", "out")),
    ({"take_": {"target": "w", "indices": [1]}}, ("in", "out")),
    ({"reshape_": {"target": "w", "shape": [1, 2, 3]}}, (None, "in", "out")),
    ({"compute": {"from": {"w": "w"}, "expr": "sum(w, axis=0)", "to": "w"}}, (None,)),
]


@pytest.mark.parametrize(("step", "wanted"), MOVED, ids=lambda x: str(next(iter(x))))
def test_names_of_axes_go_where_the_axes_go(step: Any, wanted: tuple[str | None, ...]) -> None:
    boxed = {"w": linen.Partitioned(jnp.asarray(KERNEL), names=("in", "out")), "v": linen.Partitioned(BIAS, ("out",))}
    made = plan(step).apply(boxed)
    assert made["w"].names == wanted
    assert boxed["w"].names == ("in", "out")
    assert made["v"].names == ("out",)


@pytest.mark.parametrize(
    ("names", "swapped"),
    [(("in", "out"), ("out", "in")), (PartitionSpec("in", "out"), PartitionSpec("out", "in"))],
    ids=["tuple", "spec"],
)
def test_the_sharding_of_a_variable_of_nnx_follows_a_transpose(names: Any, swapped: Any) -> None:
    mesh = jax.make_mesh((1, 1), ("in", "out"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        init = nnx.with_partitioning(nnx.initializers.ones, names)
        state: Any = nnx.state(nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0)))
    both = {"transpose_": {"target": "kernel"}}
    made = plan(both).apply(state)
    assert made["kernel"].get_metadata()["out_sharding"] == swapped
    assert state["kernel"].get_metadata()["out_sharding"] == names
    assert plan(both, both).apply(state)["kernel"].get_metadata()["out_sharding"] == names


# --- Plans as static arguments ----------------------------------------------------------------------------------------


def test_equal_plans_are_one_static_argument() -> None:
    traced = []

    def apply(plan: bs.Plan, tree: Any) -> Any:
        traced.append(plan)
        return plan.apply(tree)

    compiled = jax.jit(apply, static_argnums=0)
    for by in (2, 2, 3):
        assert compiled(plan({"scale_": {"target": "w", "by": by}}), {"w": jnp.ones(1)})["w"] == by
    assert len(traced) == 2


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), ({"a": [1, 2]}, {"a": [1, 2]})], ids=["numbers", "lists"])
def test_plans_that_are_equal_have_one_hash(one: Any, other: Any) -> None:
    first, second = (bs.load({"vars": {"x": v}, "transforms": [], "seed": 3}) for v in (one, other))
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale_": {"target": "w", "by": 0.0}}, {"scale_": {"target": "w", "by": -0.0}}),
        ({"config": {"patch": {"k": 1}}}, {"config": {"patch": {"k": True}}}),
        ({"config": {"patch": {"k": 1}}}, {"config": {"patch": {"k": 1.0}}}),
    ],
)
def test_plans_that_say_something_else_are_not_equal_even_where_python_calls_the_values_so(one: Any, other: Any):
    first, second = (bs.load({"transforms": [step]}) for step in (one, other))
    assert first != second
    assert first == bs.load({"transforms": [one]})
    assert len({first, second, bs.load({"transforms": [one]})}) == 2


def test_outputs_that_say_something_else_make_other_plans():
    first, second = (bs.load({"output": {"path": "m/", "config": {"k": k}}}) for k in (0, False))
    assert first != second
    assert first != "a plan"


def test_a_jitted_function_computes_each_of_two_plans_that_differ_by_a_sign():
    jitted = jax.jit(lambda plan, tree: plan.apply(tree), static_argnums=0)
    plans = [bs.load({"transforms": [{"scale_": {"target": "w", "by": by}}]}) for by in (0.0, -0.0)]
    made = [np.signbit(jitted(each, {"w": np.ones(2, np.float32)})["w"]).tolist() for each in plans]
    assert made == [[False, False], [True, True]]
