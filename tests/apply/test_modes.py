"""Every op under `jax.jit`, `jax.vmap` and `jax.grad`, in JAX's default configuration and with 64-bit types.

It gives what it gives outside, and a gradient that finite differences confirm; or it is refused, and says why
(`modes.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
import brainsurgery_jax.ops  # says which ops there are
from brainsurgery_jax import plugins
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.expression.functions import CASTS, FUNCTIONS
from brainsurgery_jax.op import OPS
from tests.apply.modes import LIMITS, MODES, Mode, limit_of
from tests.checkpoints import counting, normal
from tests.ops_table import ROWS, Refused, Row

Tree = dict[str, Any]

MY_OPS = Path(__file__).parents[1] / "user_ops" / "my_ops.py"
LINEAR = {
    "solve": "solve(w @ w.T + eye(4), r) + cholesky(w @ w.T + eye(4)) @ r",
    "inv": "inv(w @ w.T + eye(4)) + pinv(w)[:4, :4] * r",
    "qr": "qr(w)[0] @ qr(w)[1] * r[:, None] + qr(w)[1]",
    "svd": "svd(w)[0] @ svd(w)[2] * svd(w)[1][:, None] * r[:, None]",
    "eigh": "eigh(w @ w.T)[1] * eigh(w @ w.T)[0] + r",
}
"""Expressions that some matrices stop."""
MORE = (
    Row("soft_cap_", {"target": "w", "cap": 100}, {"w": counting((4, 6)) - 7}, lambda t: {}, ()),
    Row("reverse_axes", {"from": "w", "to": "v"}, {"w": counting((4, 6)) - 7}, lambda t: {}, ()),
    Row("diff", {"left": "w", "right": "w"}, {"w": counting((2,))}, lambda t: {}, (), label="values"),
    Row("rand", {"target": "n", "shape": [5], "distribution": "normal"}, {"w": counting((3,))}, lambda t: {}, (),
        label="normal"),
    Row("phlora", {"target": "w", "target_a": "A", "target_b": "B", "rank": 3}, {"w": normal((9, 5))},
        lambda t: {}, (), label="tall"),
    Row("phlora", {"target": "w", "target_a": "A", "target_b": "B", "rank": 3}, {"w": normal((5, 9))},
        lambda t: {}, (), label="wide"),
    *(row._replace(tensors={n: normal(x.shape, seed=at) for at, (n, x) in enumerate(row.tensors.items())},
                   label="distinct")
      for row in ROWS if row.op == "refactor_attention"),
    *(Row("compute", {"from": {"w": "w", "r": "r"}, "expr": expr, "to": "e"},
          {"w": normal((4, 6)), "r": normal((4,), seed=1)}, lambda t: {}, (), label=expr)
      for expr in ("w / 448 + r[:, None]", "norm(w, axis=1) * r", "softmax(w, axis=0) * 0.3 + std(w) + 0 * r[0]",
                   "where(abs(w) > median(abs(w)), w ** 3, 0) / (1 + r[0] ** 2)", "w.T @ r + quantile(w, 0.3)",
                   "take(w, 3) * r + maximum(r, 0.1) // 0.3 + r % 0.7",
                   "erf(w) + log1p(w ** 2) * expm1(w) + arctan2(w, r[:, None]) + arccos(tanh(w)) * arcsin(tanh(w))",
                   "w / sqrt(sum_over(sum(w ** 2)) + 1) * stack_over(r)[0, 0]",
                   "logsumexp(w, axis=1) * prod(r) + where(any(w > 9) | all(w > -9), r, 0) + nan_to_num(r)",
                   "sort(w, axis=1)[:, 1] * topk(w, 2)[:, 0] + cumsum(r) + take(w, argmax(w)) * kron(r, ones(1))",
                   "take(w, argsort(r), axis=0) * linspace(0, 1, 6) + roll(w, 1, axis=1) + take(r, argtopk(r, 2))[0]",
                   "einsum('ij,kj->ik', w, w) * det(w @ w.T) + trace(w @ w.T)",
                   "exp(w * 0.1) * log(abs(w) + 1) + sin(w) * cos(w) + sigmoid(w) * sign(w) + minimum(w, 1)",
                   "clip(w, -0.5, 0.5) * where(isfinite(w), w, zeros_like(w)) + where(isnan(w), w, ones_like(w))",
                   "var(w, axis=1) * min(w) + max(w) * r",
                   "matmul(tril(w[:, :4]), triu(w[:, :4])) + dot(transpose(w), r)[:4] * diag(w[:, :4])",
                   "flip(repeat(r, 2))[:4] * reshape(w, (6, 4))[:4] + concat(r, zeros(4))[:4] * stack(r, r)[0]",
                   "w[:, :4] * (arange(4) + float32(ones(4))) + concat_over(r)[0]",
                   "ranks(w, axis=1) * 0.5 * w + take(w, argmin(w)) + round(w) + floor(w) + ceil(w)",
                   "float64(w) * 0.5 + float64(r)[:, None]")),
    *(Row("compute", {"from": {"w": "w", "r": "r"}, "expr": expr, "to": "e"},
          {"w": normal((4, 6)), "r": normal((4,), seed=1)}, lambda t: {}, (), label=label)
      for label, expr in {**LINEAR, "kth": "kth_largest(w, 5) * r"}.items()),
)  # fmt: skip
REGISTERED = frozenset(OPS)
NOT_HERE = {
    "lora_extract": "which tensors differ must be known: `tests/adapters/test_traced.py`",
}
TABLE = [*(row for row in ROWS if row.op not in NOT_HERE), *MORE]
EACH = pytest.mark.parametrize("row", TABLE, ids=str)

ROUGH = {"cast", "cast_", "soft_cap_", "compute-new", "dequantize", "quantize", "quantize-words"}
"""Rows that round to a narrow dtype, so that differences of float64 say nothing."""

NO_DERIVATIVE = {"refactor_attention"}
"""Rows of products whose singular values are zero, at which their factors have no derivative."""

OF_LOW_RANK = {"expert_ranks"}
"""Rows of matrices whose smaller singular values are zero up to rounding, which another processor rounds to zero: there
the derivative of a decomposition is infinite. For a derivative they get full rank."""

Within = Callable[[], AbstractContextManager[Any]]
X32, X64 = nullcontext, lambda: jax.enable_x64(True)
"""JAX's default configuration, and that with 64-bit types."""

KINDS = [
    pytest.param(np.float32, X32, id="float32-default"),
    pytest.param(np.float64, X32, id="float64-default"),
    pytest.param(np.float64, X64, id="float64-x64"),
    pytest.param(np.int32, X32, id="int32-default"),
    pytest.param(np.int64, X32, id="int64-default"),
    pytest.param(np.int64, X64, id="int64-x64"),
]


@pytest.fixture(autouse=True)
def my_ops() -> Iterator[None]:
    """Ops of a user's own beside ours."""
    with plugins.scope():
        bs.register(MY_OPS)
        yield


SEVERAL = ("rebasin", "lora_merge", "merge")
"""Ops between several aliases, of which `model` is given back."""


def plan_of(row: Row) -> bs.Plan:
    data: dict[str, Any] = {"inputs": ["model::given-as-a-tree"], "transforms": [*row.before, {row.op: row.payload}]}
    if row.op in SEVERAL:
        data["output"] = {"path": "given-back-as-a-tree", "alias": "model"}
    return bs.load(data)


def test_every_op_is_in_the_table() -> None:
    assert REGISTERED - {row.op for row in TABLE} == NOT_HERE.keys()


def test_every_function_of_compute_is_in_the_table_but_casts_to_integers() -> None:
    written = " ".join(str(row.payload) for row in TABLE)
    missing = {name for name in FUNCTIONS if not re.search(rf"\b{name}\(", written)}
    assert missing == {name for name in CASTS if "int" in name}, "`cast_` has their limits"


def tree_of(row: Row, dtype: Any, factor: float = 1) -> Tree:
    """The tensors of a row as JAX arrays, floats in `dtype`."""
    with jax.enable_x64(True):
        return {
            name: jnp.asarray(x.astype(dtype) * np.asarray(factor, dtype)) if x.dtype.kind == "f" else jnp.asarray(x)
            for name, x in row.tensors.items()
        }


def assert_near(found: Mapping[str, Any], wanted: Mapping[str, Any], within: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        a, b = (np.asarray(y).astype(np.complex128) for y in (one, other))
        np.testing.assert_allclose(a, b, rtol=within, atol=within)


def no_step_for(plan: bs.Plan, tree: Tree) -> bool:
    """Whether shapes and dtypes alone are refused, under a trace or not."""
    try:
        plan.apply({name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tree.items()}, checks="skip")
    except PlanError:
        return True
    return False


def as_outside(plan: bs.Plan, tree: Tree) -> Tree:
    return plan.apply(tree, checks="skip")


# --- Under jit and vmap -----------------------------------------------------------------------------------------------


def by_jit(plan: bs.Plan, checks: Any, one: Tree, other: Tree) -> list[Tree]:
    return [jax.jit(lambda tree: plan.apply(tree, checks=checks))(one)]


def by_vmap(plan: bs.Plan, checks: Any, one: Tree, other: Tree) -> list[Tree]:
    with jax.enable_x64(True):
        both = {name: jnp.stack([one[name], other[name]]) for name in one}
    made = jax.vmap(lambda tree: plan.apply(tree, checks=checks))(both)
    return [jax.tree.map(lambda x, at=at: x[at], made) for at in range(2)]


@pytest.mark.parametrize(("mode", "by"), [("jit", by_jit), ("vmap", by_vmap)], ids=["jit", "vmap"])
@pytest.mark.parametrize(("dtype", "within"), KINDS)
@EACH
def test_an_op_gives_under_jit_and_vmap_what_it_gives_outside_or_says_why_not(
    row: Row, dtype: Any, within: Within, mode: Mode, by: Callable[..., list[Tree]]
) -> None:
    plan, (one, other) = plan_of(row), (tree_of(row, dtype, factor) for factor in (1, 2))
    if no_step_for(plan, one):
        assert np.dtype(dtype).kind == "i", "every row is about floats"
        with within(), pytest.raises(PlanError) as caught:
            by(plan, "raise", one, other)
        assert "apply-values" not in {d.code for d in caught.value.diagnostics}
        return
    wanted = [as_outside(plan, one), as_outside(plan, other)]
    kind = "f" if any(x.dtype.kind == "f" for x in one.values()) else "l" if dtype == np.int64 else "i"
    limit = limit_of(str(row), mode, kind, checks=False)
    with within():
        if limit is not None:
            with pytest.raises(PlanError, match=limit.match) as caught:
                by(plan, "raise", one, other)
            assert {d.code for d in caught.value.diagnostics} == {"apply-values"}
            if not limit.lifted:
                return
        for found, outside in zip(by(plan, "skip" if limit else "raise", one, other), wanted, strict=False):
            assert_near(found, outside, 1e-5 if dtype == np.float32 or str(row) in ROUGH else 1e-9)


# --- Subnormal numbers ------------------------------------------------------------------------------------------------

LOSE_THEM = re.compile("rebasin|(de)?quantize|phlora|refactor$|merge$|expert_ranks")
"""Rows of merges, factorizations and codes, which take subnormal numbers for zero under `jit` on the CPU."""

TRACED = [row for row in TABLE if limit_of(str(row), "jit", "f", checks=True) is None]


@pytest.mark.parametrize("row", [row for row in TRACED if not LOSE_THEM.match(str(row))], ids=str)
def test_an_op_keeps_subnormal_numbers_under_jit(row: Row) -> None:
    """numpy keeps them by itself; XLA's code for the CPU takes them for zero."""
    plan, tiny = plan_of(row), tree_of(row, np.float32, 1e-41)
    wanted = plan.apply({name: np.asarray(x) for name, x in tiny.items()}, checks="skip")
    (found,) = by_jit(plan, "skip", tiny, tiny)
    for inside, outside in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = (np.asarray(x).astype(np.complex128) for x in (inside, outside))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=6e-45)


BOTH = {"left": "w", "right": "z"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("assertion", [
    {"iszero": "w"}, {"iszero": {"of": "w", "eps": 1e-42}}, {"equal": BOTH}, {"equal": BOTH | {"eps": 1e-42}},
    {"close": BOTH | {"rtol": 0, "atol": 1e-42}}, {"norm": {"of": "w", "is": 0, "eps": 1e-42}},
    {"norm": {"of": "w", "is": 0, "eps": 1e-42, "ord": "max"}},
], ids=str)  # fmt: skip
def test_no_assert_takes_subnormal_numbers_for_zero_under_jit(assertion: Mapping[str, Any], dtype: str) -> None:
    tree = {"w": jnp.asarray(np.linspace(1e-41, 3e-39, 16)).astype(dtype), "z": jnp.zeros(16, dtype)}
    plan = bs.load({"transforms": [{"assert": dict(assertion)}]})
    _, verdicts = jax.jit(lambda tree: plan.apply(tree, checks="return"))(tree)
    assert not jax.tree.reduce(jnp.logical_and, verdicts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bounds_and_factors_that_are_subnormal_are_kept_under_jit(dtype: str) -> None:
    steps = [{"clamp_": {"target": "w", "min": 2e-41, "max": 1e-39}}, {"scale_": {"target": "one", "by": 1e-39}}]
    tree = {"w": jnp.asarray(np.linspace(1e-41, 3e-39, 16)).astype(dtype), "one": jnp.ones(4, dtype)}
    plan = bs.load({"transforms": steps})
    found, wanted = jax.jit(plan.apply)(tree), plan.apply({name: np.asarray(x) for name, x in tree.items()})
    for name in tree:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(wanted[name]))


# --- Gradients --------------------------------------------------------------------------------------------------------


def total(made: Tree) -> Any:
    """One number of all floats that a step makes: the sum of their squares, each with a weight of its own."""
    floats = [x.astype(jnp.result_type(float)) for x in jax.tree.leaves(made) if x.dtype.kind == "f"]
    if not floats:
        return jnp.sum(jax.tree.leaves(made)[0])  # which JAX refuses to differentiate
    weights = (jnp.cos(jnp.arange(x.size, dtype=jnp.int32).astype(x.dtype)).reshape(x.shape) for x in floats)
    return sum(jnp.sum(w * x * x) for w, x in zip(weights, floats, strict=True))


def slope(f: Callable[[Tree], Any], tree: Tree, along: Tree) -> float:
    """The derivative of a function along a direction, by differences of what it gives outside of any trace."""
    step = 1e-5
    ahead, back = ({n: tree[n] + s * along[n] for n in tree} for s in (step, -step))
    return float((f(ahead) - f(back)) / (2 * step))


@pytest.mark.parametrize(("dtype", "within"), KINDS[:3])
@EACH
def test_the_gradient_of_an_op_is_its_slope_or_it_says_why_there_is_none(row: Row, dtype: Any, within: Within) -> None:
    plan, tree = plan_of(row), tree_of(row, dtype)
    floats = {name: x for name, x in tree.items() if x.dtype.kind == "f"}
    if str(row) in OF_LOW_RANK:
        rng = np.random.default_rng(2)
        with jax.enable_x64(True):
            floats = {name: x + jnp.asarray(rng.standard_normal(x.shape), x.dtype) for name, x in floats.items()}

    def gradient(checks: Any) -> Tree:
        return jax.grad(lambda fs: total(plan.apply(tree | fs, checks=checks)))(floats)

    kind = "d" if (dtype, within) == (np.float64, X32) else "f"
    limits = [limit_of(str(row), "grad", kind, checks=checks) for checks in (False, True)]
    with within():
        for limit, checks in zip(limits, ("raise", "skip"), strict=True):
            if limit is not None:
                with pytest.raises((PlanError, TypeError, UserWarning), match=limit.match):
                    gradient(checks)
        if limits[1] is not None:
            return
        found = gradient("skip" if limits[0] else "raise")
    if str(row) in NO_DERIVATIVE:
        assert any(np.isnan(np.asarray(x)).any() for x in found.values()), "as the op's page says"
        return
    assert all(np.isfinite(np.asarray(x)).all() for x in found.values())
    if str(row) in ROUGH or dtype == np.float32:
        return
    with jax.enable_x64(True):
        along = {n: jnp.asarray(np.random.default_rng(1).standard_normal(x.shape)) for n, x in floats.items()}
        sloped = slope(lambda fs: _total64(as_outside(plan, tree | fs)), floats, along)
        known = sum(float(jnp.sum(found[n] * along[n])) for n in floats)
    np.testing.assert_allclose(known, sloped, rtol=1e-4, atol=1e-3)


def _total64(made: Tree) -> float:
    floats = [np.asarray(x, np.float64) for x in jax.tree.leaves(made) if x.dtype.kind == "f"]
    weights = (np.cos(np.arange(x.size)).reshape(x.shape) for x in floats)
    return float(sum(np.sum(w * x * x) for w, x in zip(weights, floats, strict=True)))


TOLERANCE = 1e-4
"""The share by which `phlora` may miss the least possible error."""


# --- What no row says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", [X32, X64], ids=["default", "x64"])
@pytest.mark.parametrize("shape", [(5, 4), (300, 280), (280, 700)])
def test_low_rank_compiles_under_jit_at_any_shape(shape: tuple[int, int], within: Within) -> None:
    plan = bs.load({"transforms": [{"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": 4}}]})
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(True):
            w = jnp.asarray(normal(shape, dtype))
        with within():
            found = jax.jit(lambda tree: plan.apply(tree, checks="skip"))({"w": w})
        x = normal(shape, dtype).astype(np.float64)
        least = np.linalg.norm(np.linalg.svd(x, compute_uv=False)[4:])
        made = np.asarray(found["B"], np.float64) @ np.asarray(found["A"], np.float64)
        assert found["A"].dtype == dtype
        rounding = (1e-6 if dtype == np.float32 else 1e-14) * np.linalg.norm(x)
        assert np.linalg.norm(x - made) <= (1 + TOLERANCE) * least + rounding


@pytest.mark.parametrize("transformed", ["jit", "vmap", "grad"])
def test_a_large_matrix_is_factorized_without_a_full_svd_where_that_is_certified(transformed: str) -> None:
    x = jnp.asarray(normal((300, 280)))

    def truncated(w: Any) -> Any:
        steps = [{"phlora_": {"target": "w", "rank": 4}}]
        return bs.load({"transforms": steps}).apply({"w": w}, checks="skip")["w"]

    wanted = jax.jit(truncated)(x)
    text = jax.jit(truncated).lower(x).as_text()
    assert "gesdd" not in text and "dot_general" in text
    if transformed == "vmap":
        np.testing.assert_allclose(jax.jit(jax.vmap(truncated))(x[None])[0], wanted, atol=1e-4)
    if transformed == "grad":
        slope = jax.jit(jax.grad(lambda w: jnp.sum(truncated(w) ** 2)))(x)
        np.testing.assert_allclose(slope, 2 * wanted, atol=1e-2)  # that of the sum of four squared singular values


def test_a_rank_that_values_choose_is_refused_under_a_trace() -> None:
    step = {"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": {"energy": 0.9}}}
    with pytest.raises(PlanError, match="the shape of its result depends on values") as caught:
        jax.jit(lambda tree: bs.load({"transforms": [step]}).apply(tree, checks="skip"))({"w": normal((5, 4))})
    assert [d.code for d in caught.value.diagnostics] == ["apply-values"]


def test_a_file_is_not_read_under_a_trace(tmp_path: Path) -> None:
    step = {"load": {"path": str(tmp_path / "x.safetensors"), "alias": "more"}}
    with pytest.raises((PlanError, StoreError), match="files are not read while JAX traces"):
        jax.jit(bs.load({"inputs": ["m::tree"], "transforms": [step]}).apply)({"w": normal((5, 4))})


def test_an_assert_on_values_needs_checks() -> None:
    plan = bs.load({"transforms": [{"assert": {"finite": "w"}}]})
    with pytest.raises(PlanError, match=r"assert\.finite: an assert on values cannot stop a traced function"):
        jax.jit(plan.apply)({"w": normal((5, 4))})
    _, verdicts = jax.jit(lambda tree: plan.apply(tree, checks="return"))({"w": normal((5, 4))})
    assert [bool(v) for v in verdicts.values()] == [True]


def test_every_limit_is_about_an_op_of_the_table() -> None:
    assert {op for limit in LIMITS for op in limit.ops} <= {n for row in TABLE for n in (f"{row.op}*", str(row))}
    assert {mode for limit in LIMITS for mode in limit.modes} <= set(MODES)
    assert all(isinstance(r, Refused) for row in TABLE for r in row.refused)


@pytest.mark.parametrize(
    "row", [row for row in TABLE if str(row) in ("matmul", "einsum", "take", "phlora-tall")], ids=str
)
def test_a_gradient_of_doubles_is_the_same_in_both_configurations(row: Row) -> None:
    plan, tree = plan_of(row), tree_of(row, np.float64)

    def pull_back(ts: Tree, cotangents: Tree) -> Tree:
        return jax.vjp(lambda fs: plan.apply(fs, checks="skip"), ts)[1](cotangents)[0]

    with jax.enable_x64(True):  # a loss of the default configuration would round to float32 before the plan's part
        made = jax.eval_shape(lambda fs: plan.apply(fs, checks="skip"), tree)
        cotangents = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), made)
        wide = pull_back(tree, cotangents)
    narrow, compiled = pull_back(tree, cotangents), jax.jit(pull_back)(tree, cotangents)
    for name, exact in wide.items():
        for found in (narrow[name], compiled[name]):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
