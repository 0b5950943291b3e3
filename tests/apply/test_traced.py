"""`plan.apply` under JAX's transformations: shapes settled at trace time, verdicts as arrays, nothing retraced."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import brainsurgery_jax as bs
from brainsurgery_jax.documents import Document, Parts
from tests.checkpoints import normal, same, write


def plan(*steps: Any, **keys: Any) -> bs.Plan:
    return bs.load({"inputs": ["model::given-as-a-tree"], "transforms": list(steps), **keys})


DOUBLE = {"scale_": {"target": "w", "by": 2}}
STEPS = [
    {"scale_": {"target": "w", "by": 0.3}},
    {"permute": {"from": "w::[:, 1:]", "to": "t", "order": [1, 0]}},
    {"matmul": {"from_a": "w", "from_b": "v", "to": "product"}},
    {"fill": {"from": "w", "to": "noise", "mode": "rand", "seed": 3}},
    {"fill_": {"target": "v::[0]", "mode": "constant", "value": 7}},
    {"phlora_": {"target": "w", "rank": 1}},
    {"cast_": {"target": "product", "to": "bfloat16"}},
]
TREE = {"w": normal((4, 3)), "v": normal((3, 2), seed=1)}


def test_a_plan_under_jit_agrees_with_the_plan_outside():
    out, traced = plan(*STEPS).apply(TREE), jax.jit(partial(plan(*STEPS).apply, checks="skip"))(TREE)
    assert sorted(out) == sorted(traced)
    for name, leaf in out.items():
        assert leaf.dtype == traced[name].dtype
        np.testing.assert_allclose(np.float32(leaf), np.float32(traced[name]), rtol=1e-5, atol=1e-6)


def test_random_values_under_jit_are_those_of_run_to_the_bit():
    noise = plan({"fill": {"from": "w", "to": "n", "mode": "rand", "seed": 3}})
    assert same(jax.jit(noise.apply)(TREE)["n"], noise.apply(TREE)["n"])


def test_a_jitted_plan_is_traced_once():
    reports: list[Document] = []
    function = jax.jit(partial(plan({"dump": {}}, DOUBLE).apply, listen=reports.append))
    for _ in range(3):
        function(TREE)
    assert [type(report) for report in reports] == [Parts]


def test_the_method_of_one_plan_is_one_function():
    doubled = plan(DOUBLE)
    assert hash(doubled.apply) == hash(doubled.apply) and doubled.apply == doubled.apply


def test_an_nnx_state_goes_through_jit():
    state: Any = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    out = jax.jit(plan({"scale_": {"target": "kernel", "by": 2}}).apply)(state)
    assert same(out["kernel"].get_value(), 2 * state["kernel"].get_value())


def test_gradients_flow_through_a_plan():
    squared = plan({"scale_": {"target": "w", "by": 3}}, {"multiply": {"from_a": "w", "from_b": "w", "to": "w"}})
    gradient = jax.grad(lambda tree: squared.apply(tree)["w"].sum())({"w": jnp.arange(3.0)})
    assert gradient["w"].tolist() == [0, 18, 36]


def test_gradients_flow_through_a_low_rank_factorization():
    low = plan({"phlora": {"target": "w", "target_a": "a", "target_b": "b", "rank": 2}})

    def loss(tree: Any) -> Any:
        out = low.apply(tree, checks="skip")
        return (out["b"] @ out["a"]).sum()

    with jax.enable_x64(True):  # indices of the backward pass are made when ours is over
        gradient = jax.jit(jax.grad(loss))({"w": TREE["w"]})["w"]
    step = 1e-3 * np.eye(1, 12, 5, dtype=np.float32).reshape(4, 3)
    slope = (loss({"w": jnp.asarray(TREE["w"] + step)}) - loss({"w": jnp.asarray(TREE["w"] - step)})) / 2e-3
    np.testing.assert_allclose(gradient[1, 2], slope, atol=2e-3)


def test_a_plan_is_mapped_over_a_stack_of_trees():
    each = plan({"permute": {"from": "w", "to": "t", "order": [1, 0]}}, DOUBLE)
    stack = {"w": jnp.arange(12.0).reshape(2, 2, 3)}
    out = jax.vmap(each.apply)(stack)
    assert same(out["t"], np.transpose(stack["w"], (0, 2, 1)))
    assert same(out["w"], 2 * stack["w"])


def test_verdicts_are_mapped_over_a_stack_of_trees():
    checked = plan({"assert": {"iszero": "w"}})
    _, verdicts = jax.vmap(partial(checked.apply, checks="return"))({"w": jnp.array([[0.0], [1.0]])})
    assert [v.tolist() for v in verdicts.values()] == [[True, False]]


def test_a_plan_is_the_body_of_a_scan():
    doubled = plan(DOUBLE)
    final, _ = jax.lax.scan(lambda tree, _: (doubled.apply(tree), None), {"w": jnp.ones(2)}, None, length=5)
    assert final["w"].tolist() == [32, 32]


def test_a_64_bit_leaf_keeps_its_bits_inside_a_jit_with_x64():
    exact = plan({"add": {"from_a": "w", "from_b": "w", "to": "w"}})
    leaf = np.arange(3.0) + 2**-40
    with jax.enable_x64(True):
        assert same(jax.jit(exact.apply)({"w": leaf})["w"], leaf + leaf)


def test_a_64_bit_constant_is_computed_exactly_inside_a_jit_without_x64():
    exact = plan(
        {"subtract": {"from_a": "big", "from_b": "one", "to": "big"}}, {"cast_": {"target": "big", "to": "float32"}}
    )
    big, one = np.array([2.0**40 + 1]), np.array([2.0**40])
    out = jax.jit(lambda x: exact.apply({"big": big, "one": one, "x": x})["big"])(jnp.ones(()))
    assert out.dtype == np.float32 and out.tolist() == [1]


def test_jit_sees_mistakes_in_shapes_while_it_traces():
    with pytest.raises(bs.PlanError, match=r"dtypes differ|shapes differ"):
        jax.jit(plan({"add_": {"from": "v", "to": "w"}}).apply)(TREE)


def test_jit_sees_failing_header_asserts_while_it_traces():
    with pytest.raises(bs.PlanError, match=r"assert\.shape: the shape of 'w' is \[4, 3\]"):
        jax.jit(plan({"assert": {"shape": {"of": "w", "is": [1]}}}).apply)(TREE)


def test_an_assert_on_values_is_refused_under_jit_with_a_way_out():
    with pytest.raises(bs.PlanError, match=r'assert\.iszero: .* cannot stop a traced function(.|\n)*checks="return"'):
        jax.jit(plan({"assert": {"iszero": "w"}}).apply)(TREE)


def test_a_skipped_assert_holds_nothing_up():
    assert jax.jit(partial(plan({"assert": {"iszero": "w"}}).apply, checks="skip"))(TREE).keys() == TREE.keys()


ASSERTS = [
    {"iszero": "zero"},
    {"iszero": {"of": "small", "eps": 0.2}},
    {"iszero": "nan"},
    {"not": {"iszero": "small"}},
    {"equal": {"left": "small", "right": "zero", "eps": 0.05}},
    {"any": [{"iszero": "small"}, {"equal": {"left": "zero", "right": "zero"}}]},
    {"all": [{"exists": "zero"}, {"iszero": "zero"}, {"iszero": "small"}]},
    {"finite": "small"},
    {"finite": "nan"},
    {"close": {"left": "small", "right": "zero", "atol": 0.2}},
    {"close": {"left": "nan", "right": "nan", "rtol": 9}},
    {"norm": {"of": "small", "ge": 0.09, "lt": 0.2}},
    {"norm": {"of": "small", "ord": "max", "le": 0.05}},
    {"norm": {"of": "nan", "ge": 0}},
]
HOLD = [True, True, False, True, False, True, False, True, False, True, False, True, False, False]
VALUES = {"zero": np.zeros(3), "small": np.array([0.0, 0.1, 0.0]), "nan": np.array([0.0, np.nan, 0.0])}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_returned_verdicts_under_jit_are_those_outside(dtype: str):
    tree = {name: jnp.asarray(v, dtype) for name, v in VALUES.items()}
    returning = partial(plan(*({"assert": a} for a in ASSERTS)).apply, checks="return")
    (_, outside), (_, inside) = returning(tree), jax.jit(returning)(tree)
    assert [bool(v) for v in outside.values()] == HOLD
    assert {k: bool(v) for k, v in inside.items()} == {k: bool(v) for k, v in outside.items()}


def test_labels_name_the_step_the_assert_and_its_line(here: Path):
    Path("plan.yaml").write_text("inputs: [m::x]\ntransforms:\n- scale_: {target: w, by: 2}\n- assert: {iszero: w}\n")
    _, verdicts = bs.load("plan.yaml").apply(TREE, checks="return")
    assert list(verdicts) == ["step 2: assert.iszero (plan.yaml:4)"]


def test_the_tree_of_verdicts_is_the_same_abstract_traced_and_concrete():
    returning = partial(
        plan({"phlora_": {"target": "w", "rank": 1}}, {"assert": {"iszero": "v"}}).apply, checks="return"
    )
    verdicts = [
        f(t)[1] for f, t in ((returning, TREE), (jax.jit(returning), TREE), (returning, jax.eval_shape(lambda: TREE)))
    ]
    assert sorted(verdicts[0]) == sorted(verdicts[1]) == sorted(verdicts[2])
    assert len(verdicts[0]) == 2


def test_a_kernel_that_refuses_values_gives_a_verdict_under_jit():
    returning = partial(plan({"phlora_": {"target": "w", "rank": 1}}).apply, checks="return")
    for value, accepted in ((1.0, True), (np.nan, False)):
        _, verdicts = jax.jit(returning)({"w": jnp.full((2, 2), value)})
        assert [bool(v) for v in verdicts.values()] == [accepted]


def test_scaling_integers_is_refused_under_jit_since_it_may_be_inexact():
    with pytest.raises(bs.PlanError, match="scale: cannot stop a traced function"):
        jax.jit(plan({"scale_": {"target": "w", "by": 0.5}}).apply)({"w": jnp.arange(3)})


def test_scaling_floats_is_never_refused_and_needs_no_word_under_jit():
    assert jax.jit(plan(DOUBLE).apply)({"w": jnp.ones(1)})["w"].tolist() == [2]


@pytest.mark.parametrize("verbosity", ["stat", "full"])
def test_values_cannot_be_dumped_under_jit(verbosity: str):
    with pytest.raises(bs.PlanError, match="dump: cannot print values while JAX traces"):
        jax.jit(plan({"dump": {"target": "w", "verbosity": verbosity}}).apply)(TREE)


def test_values_cannot_be_compared_in_print_under_jit():
    with pytest.raises(bs.PlanError, match="diff: cannot print values while JAX traces"):
        jax.jit(plan({"diff": {"left": "w", "right": "w"}}).apply)(TREE)


def test_files_are_not_read_under_jit(here: Path):
    write(here / "b.safetensors", {"w": TREE["w"]})
    both = bs.load({"inputs": ["a::x", "b::b.safetensors"], "transforms": [{"add_": {"from": "b::w", "to": "a::w"}}]})
    says = r"not read while JAX traces(.|\n)*give it: `plan.apply\(tree, b=other_tree\)`"
    with pytest.raises(bs.PlanError, match=says):
        jax.jit(both.apply)(TREE)


def test_a_rank_from_values_is_refused_under_jit():
    step = {"phlora": {"target": "w", "target_a": "a", "target_b": "b", "rank": {"energy": 0.5}}}
    with pytest.raises(bs.PlanError, match=r"phlora: the shape of its result depends on values(.|\n)*rank: 16"):
        jax.jit(plan(step).apply)(TREE)


@pytest.mark.parametrize("step", [
    {"scale_": {"target": "i.*", "by": 0.5}}, {"divide_": {"from": "i.*", "to": r"\g<0>"}},
], ids=["scale_", "divide_"])  # fmt: skip
def test_what_integers_are_refused_for_under_a_trace_names_their_reference(step: dict[str, Any]) -> None:
    tree = {"i": jnp.ones(3, jnp.int32), "ix": jnp.ones(3)}
    with pytest.raises(bs.PlanError) as caught:
        jax.jit(plan(step).apply)(tree)
    (found,) = caught.value.diagnostics
    assert "`{name: 'i.*', kind: float}` leaves integers as they are" in found.message
    ((op, keys),) = step.items()
    mended = {op: keys | {key: {"name": "i.*", "kind": "float"} for key in ("target", "from") if key in keys}}
    made = jax.jit(partial(plan(mended).apply, checks="skip"))(tree)
    assert made["i"].tolist() == [1, 1, 1]
