"""Closed-form edits against oracles of their own: least squares in other coordinates, torch's gradients, loops over
single weights with an inverse of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import normal, plan_of, problems, run_plan

Tensors = dict[str, np.ndarray]
OUT, IN, FACTS = 6, 9, 3


def covariance(size: int = IN, samples: int = 40, seed: int = 3) -> np.ndarray:
    x = normal((samples, size), np.float64, seed)
    return (x.T @ x).astype(np.float32)


BASE: Tensors = {
    "w": normal((OUT, IN)), "keys": normal((FACTS, IN), seed=1), "values": normal((FACTS, OUT), seed=2),
    "key": normal((IN,), seed=4), "value": normal((OUT,), seed=5), "c": covariance(),
}  # fmt: skip
DEPENDENT = {
    "a sum": lambda a, b: [a, b, a + b],
    "a combination": lambda a, b: [a, b, a.dtype.type(0.3) * a - a.dtype.type(0.7) * b],
    "a multiple": lambda a, b: [a, a.dtype.type(3) * a],
}
"""Vectors of which the last is made of the others, rounded to their dtype."""
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
FACT = {"target": "w", "keys": "key", "values": "value"}
ALL = {"target": "w", "keys": "keys", "values": "values"}


def edited(folder: Path, step: dict[str, Any], tensors: Tensors = BASE) -> np.ndarray:
    """The matrix `w` after a step; everything else must be as it was."""
    found = run_plan(folder, tensors, [step])
    assert all(found[n].tobytes() == x.tobytes() for n, x in tensors.items() if n != "w")
    assert (found["w"].dtype, found["w"].shape) == (tensors["w"].dtype, tensors["w"].shape)
    return found["w"].astype(np.float64)


# --- Facts ------------------------------------------------------------------------------------------------------------


def whitened(t: Tensors, keys: np.ndarray, values: np.ndarray, c: np.ndarray | None) -> np.ndarray:
    """The least change of `W L` (C = L L^T) that meets all facts, by the pseudo-inverse."""
    factor = np.linalg.cholesky(c.astype(np.float64)) if c is not None else np.eye(IN)
    w, k = t["w"].astype(np.float64), np.atleast_2d(keys).astype(np.float64)
    residuals = np.atleast_2d(values) - k @ w.T
    whole = residuals.T @ np.linalg.pinv(np.linalg.solve(factor, k.T))
    return w + whole @ np.linalg.inv(factor)


def least_squares(t: Tensors, weight: float, share: float = 1.0) -> np.ndarray:
    """Facts as rows of one least-squares problem, the covariance as others."""
    k, w = t["keys"].astype(np.float64), t["w"].astype(np.float64)
    factor = np.sqrt(weight) * np.linalg.cholesky(t["c"].astype(np.float64)).T
    residuals = share * (t["values"] - k @ w.T)
    wanted = np.concatenate([residuals, np.zeros((IN, OUT))])
    return w + np.linalg.lstsq(np.concatenate([k, factor]), wanted, rcond=None)[0].T


Oracle = Callable[[Tensors], np.ndarray]
FACTS_TABLE: dict[str, tuple[dict[str, Any], Oracle]] = {
    "rome": ({"rome_": FACT | {"covariance": "c"}}, lambda t: whitened(t, t["key"], t["value"], t["c"])),
    "rome without a covariance": ({"rome_": FACT}, lambda t: whitened(t, t["key"], t["value"], None)),
    "emmet": ({"emmet_": ALL | {"covariance": "c"}}, lambda t: whitened(t, t["keys"], t["values"], t["c"])),
    "emmet without a covariance": ({"emmet_": ALL}, lambda t: whitened(t, t["keys"], t["values"], None)),
    "emmet of one fact": ({"emmet_": FACT | {"covariance": "c"}},
                          lambda t: whitened(t, t["key"], t["value"], t["c"])),
    "memit": ({"memit_": ALL | {"covariance": "c"}}, lambda t: least_squares(t, 1.0)),
    "memit with a share and a weight": ({"memit_": ALL | {"covariance": "c", "share": 0.25, "weight": 7}},
                                        lambda t: least_squares(t, 7.0, 0.25)),
}  # fmt: skip


@pytest.mark.parametrize("case", FACTS_TABLE)
def test_facts_are_edited_as_least_squares_says(case: str, tmp_path: Path) -> None:
    step, oracle = FACTS_TABLE[case]
    found = edited(tmp_path, step)
    np.testing.assert_allclose(found, oracle(BASE), rtol=0, atol=2e-6)
    ((name, payload),) = step.items()
    if name != "memit_":
        k, v = BASE[payload["keys"]], BASE[payload["values"]]
        np.testing.assert_allclose(np.atleast_2d(k) @ found.T, np.atleast_2d(v), atol=1e-5)


@pytest.mark.parametrize("case", FACTS_TABLE)
def test_a_matrix_of_gpt2_is_edited_transposed(case: str, tmp_path: Path) -> None:
    step, oracle = FACTS_TABLE[case]
    ((name, payload),) = step.items()
    turned = {**BASE, "w": BASE["w"].T.copy()}
    found = edited(tmp_path, {name: payload | {"transposed": True}}, turned)
    np.testing.assert_allclose(found.T, oracle(BASE), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["rome_", "emmet_", "memit_"])
def test_residuals_may_be_given(name: str, tmp_path: Path) -> None:
    keys, values = ("key", "value") if name == "rome_" else ("keys", "values")
    payload = {"target": "w", "keys": keys, "values": values, "covariance": "c"}
    (tmp_path / "plain").mkdir()
    wanted = edited(tmp_path / "plain", {name: payload})
    residuals = BASE[values] - BASE[keys] @ BASE["w"].T
    found = edited(tmp_path, {name: payload | {"residual": True}}, {**BASE, values: residuals})
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_layers_share_residuals(tmp_path: Path) -> None:
    """With residuals measured once, equal shares of all layers add up to them where the covariance weighs nothing."""
    tensors = {f"h.{n}.w": normal((OUT, IN), seed=n) for n in range(4)} | {n: BASE[n] for n in ("keys", "values")}
    tensors["tiny"] = 1e-9 * np.eye(IN, dtype=np.float32)
    step = {"memit_": {"target": r"h\.\d\.w", "keys": "keys", "values": "values", "covariance": "tiny",
                       "residual": True, "share": 0.25}}  # fmt: skip
    found = run_plan(tmp_path, tensors, [step])
    total = sum(BASE["keys"] @ (found[n] - tensors[n]).T for n in tensors if n.startswith("h."))
    np.testing.assert_allclose(total, BASE["values"], atol=1e-4)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    narrow = {n: x.astype(ml_dtypes.bfloat16) for n, x in BASE.items() if n != "c"} | {"c": BASE["c"]}
    found = run_plan(tmp_path, narrow, [{"rome_": FACT | {"covariance": "c"}}])["w"]
    wide = {n: x.astype(np.float64) for n, x in narrow.items()}
    wanted = whitened(wide, wide["key"], wide["value"], wide["c"]).astype(np.float32).astype(ml_dtypes.bfloat16)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["rome_", "emmet_"])
def test_a_singular_covariance_stops_the_run(name: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**BASE, "c": np.zeros((IN, IN), np.float32)}, [{name: FACT | {"covariance": "c"}}])
    with pytest.raises(PlanError, match="the covariance is not symmetric and positive definite"):
        bs.load(plan).run(durable=False)


@pytest.mark.parametrize("lacking", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["rome_", "emmet_"])
def test_a_covariance_of_too_few_samples_stops_the_run(name: str, dtype: Any, lacking: int, tmp_path: Path) -> None:
    x = normal((IN - lacking, IN), np.float64) * 2.0 ** np.arange(-3, IN - 3)
    plan = plan_of(tmp_path, {**BASE, "c": (x.T @ x).astype(dtype)}, [{name: FACT | {"covariance": "c"}}])
    with pytest.raises(PlanError, match="the covariance is not symmetric and positive definite"):
        bs.load(plan).run(durable=False)


def test_facts_alone_that_do_not_say_all_of_a_matrix_stop_the_run(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASE, [{"memit_": ALL | {"covariance": "c", "weight": 0}}])
    with pytest.raises(PlanError, match="the covariance is not symmetric and positive definite"):
        bs.load(plan).run(durable=False)


def test_a_covariance_of_very_unequal_inputs_is_positive(tmp_path: Path) -> None:
    sizes = np.float32(10) ** np.arange(-8, 1, dtype=np.float32)
    tensors = BASE | {"c": np.diag(sizes)}
    found = edited(tmp_path, {"rome_": FACT | {"covariance": "c"}}, tensors)
    np.testing.assert_allclose(found, whitened(tensors, BASE["key"], BASE["value"], tensors["c"]), atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", DEPENDENT)
@pytest.mark.parametrize("more", [{}, {"covariance": "c"}], ids=["identity", "covariance"])
def test_keys_that_depend_on_each_other_but_for_rounding_stop_the_run(
    more: dict[str, str], case: str, dtype: Any, tmp_path: Path
) -> None:
    keys = np.stack(DEPENDENT[case](normal((IN,), dtype, 1), normal((IN,), dtype, 2)))
    tensors = BASE | {"keys": keys, "values": normal((len(keys), OUT), seed=3)}
    plan = plan_of(tmp_path, tensors, [{"emmet_": ALL | more}])
    with pytest.raises(PlanError, match="the keys depend on each other"):
        bs.load(plan).run(durable=False)


def test_nearly_equal_keys_give_both_values(tmp_path: Path) -> None:
    keys = np.stack([BASE["key"], BASE["key"] + np.float32(1e-3) * BASE["keys"][0]])
    tensors = {n: x.astype(np.float64) for n, x in (BASE | {"keys": keys, "values": BASE["values"][:2]}).items()}
    found = edited(tmp_path, {"emmet_": ALL}, tensors)
    np.testing.assert_allclose(tensors["keys"] @ found.T, tensors["values"], atol=1e-8)


# --- Directions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_direction_is_removed_along_an_axis(dim: int, strength: float, tmp_path: Path) -> None:
    r = normal(((OUT, IN)[dim],), seed=8) * 3
    step = {"ablate_": {"target": "w", "direction": "r", "dim": dim, "strength": strength}}
    found = edited(tmp_path, step, {"w": BASE["w"], "r": r})
    unit = torch.nn.functional.normalize(torch.from_numpy(r).double(), dim=0)
    w = torch.from_numpy(BASE["w"]).double()
    wanted = w - strength * (torch.outer(unit, unit @ w) if dim == 0 else torch.outer(w @ unit, unit))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    if strength == 1:
        left = unit.numpy() @ found if dim == 0 else found @ unit.numpy()
        assert np.abs(left).max() < 1e-6


def test_several_directions_are_removed_together(tmp_path: Path) -> None:
    r = normal((3, OUT), seed=8)
    found = edited(tmp_path, {"ablate_": {"target": "w", "direction": "r"}}, {"w": BASE["w"], "r": r})
    wanted = BASE["w"] - r.T @ np.linalg.lstsq(r.T, BASE["w"], rcond=None)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_stack_and_its_last_axis(tmp_path: Path) -> None:
    w, r = normal((4, OUT, IN)), normal((IN,), seed=2)
    found = edited(tmp_path, {"ablate_": {"target": "w", "direction": "r", "dim": -1}}, {"w": w, "r": r})
    assert np.abs(found @ (r / np.linalg.norm(r))).max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", DEPENDENT)
@pytest.mark.parametrize("width", [OUT, 512])
def test_directions_that_depend_on_each_other_but_for_rounding_stop_the_run(
    width: int, case: str, dtype: Any, tmp_path: Path
) -> None:
    r = np.stack(DEPENDENT[case](normal((width,), dtype, 8), normal((width,), dtype, 9)))
    step = {"ablate_": {"target": "w", "direction": "r"}}
    plan = plan_of(tmp_path, {"w": normal((width, IN)), "r": r}, [step])
    with pytest.raises(PlanError, match="depend on each other"):
        bs.load(plan).run(durable=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_directions_that_are_nearly_the_same_are_both_removed(dtype: Any, tmp_path: Path) -> None:
    """Eight times the precision of their dtype apart, but 1e-9 at least, and of sizes that differ."""
    a, b = np.linalg.qr(normal((512, 2), np.float64))[0].T
    r = np.stack([a, 1e3 * (a + max(8 * float(ml_dtypes.finfo(dtype).eps), 1e-9) * b)]).astype(dtype)
    w = normal((512, IN), np.float64)
    found = edited(tmp_path, {"ablate_": {"target": "w", "direction": "r"}}, {"w": w, "r": r})
    basis = np.linalg.svd(r.astype(np.float64), full_matrices=False)[2]
    np.testing.assert_allclose(basis @ found, 0, atol=1e-5)
    assert np.linalg.matrix_rank(w - found) == 2


@pytest.mark.parametrize("r", [np.zeros(OUT), np.ones((2, OUT)), np.full(OUT, np.nan)], ids=["zero", "equal", "nan"])
def test_directions_that_are_none_stop_the_run(r: np.ndarray, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": BASE["w"], "r": r.astype(np.float32)},
                   [{"ablate_": {"target": "w", "direction": "r"}}])  # fmt: skip
    with pytest.raises(PlanError, match="directions are zero, or depend on each other"):
        bs.load(plan).run(durable=False)


# --- Fisher information -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_consolidated_weights_are_where_the_gradient_is_zero(own: bool, tmp_path: Path) -> None:
    old, f, g = normal((OUT, IN), seed=1), normal((OUT, IN), seed=2) ** 2, normal((OUT, IN), seed=3) ** 2
    step = {"target": "w", "old": "old", "fisher": "f", "strength": 3.5} | ({"own_fisher": "g"} if own else {})
    found = edited(tmp_path, {"consolidate_": step}, {"w": BASE["w"], "old": old, "f": f, "g": g})
    x = torch.tensor(found, requires_grad=True)
    curvature = torch.from_numpy(g).double() if own else torch.ones(OUT, IN, dtype=torch.float64)
    loss = (curvature * (x - torch.from_numpy(BASE["w"])) ** 2).sum()
    loss = loss + 3.5 * (torch.from_numpy(f).double() * (x - torch.from_numpy(old)) ** 2).sum()
    loss.backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 2e-5


def test_weights_that_no_task_needs_stay(tmp_path: Path) -> None:
    none = np.zeros((OUT, IN), np.float32)
    step = {"consolidate_": {"target": "w", "old": "old", "fisher": "f", "own_fisher": "f"}}
    found = edited(tmp_path, step, {"w": BASE["w"], "old": none + 1, "f": none})
    assert found.tolist() == BASE["w"].tolist()


@pytest.mark.parametrize("strength", [3.0, 0.0])
@pytest.mark.parametrize("which", ["f", "g"])
def test_negative_fisher_information_stops_the_run_until_it_is_clamped(
    which: str, strength: float, tmp_path: Path
) -> None:
    tensors = {"w": BASE["w"], "old": normal((OUT, IN), seed=1), "f": normal((OUT, IN), seed=2) ** 2,
               "g": normal((OUT, IN), seed=3) ** 2 + 1}  # fmt: skip
    tensors[which][1, 2] *= -1
    step = {"consolidate_": {"target": "w", "old": "old", "fisher": "f", "own_fisher": "g", "strength": strength}}
    with pytest.raises(PlanError, match=r"Fisher information is negative") as told:
        bs.load(plan_of(tmp_path, tensors, [step])).run(durable=False)
    clamp = yaml.safe_load(re.findall("`(.*)`", str(told.value))[0].replace("...", which))
    made = run_plan(tmp_path, tensors, [clamp, step])["w"]
    f, g = (np.maximum(tensors[k].astype(float), 0) for k in "fg")
    wanted = (g * tensors["w"] + strength * f * tensors["old"]) / (g + strength * f + (g + strength * f == 0))
    wanted = np.where(g + strength * f == 0, tensors["w"], wanted)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)


# --- Pruning ----------------------------------------------------------------------------------------------------------

WIDE: Tensors = {"w": normal((8, 32)), "x": np.abs(normal((32,), seed=6)), "h": covariance(32, 100)}


def torch_wanda(w: np.ndarray, norms: np.ndarray, ratio: float, kept: int = 0, group: int = 0) -> np.ndarray:
    metric = torch.from_numpy(w).abs() * torch.from_numpy(norms)[None, :]
    mask = torch.zeros_like(metric, dtype=torch.bool)
    if group:
        for start in range(0, metric.shape[1], group):
            part = metric[:, start : start + group]
            mask.scatter_(1, start + torch.topk(part, group - kept, dim=1, largest=False)[1], True)
    else:
        places = torch.sort(metric, dim=-1, stable=True)[1][:, : int(metric.shape[1] * ratio)]
        mask.scatter_(1, places, True)
    made = torch.from_numpy(w).clone()
    made[mask] = 0
    return made.numpy()


PATTERNS = [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8), ("7:8", 7, 8)]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.97])
def test_wanda_removes_a_share_of_each_output(ratio: float, tmp_path: Path) -> None:
    found = run_plan(tmp_path, WIDE, [{"wanda_": {"target": "w", "norms": "x", "ratio": ratio}}])["w"]
    assert found.tolist() == torch_wanda(WIDE["w"], WIDE["x"], ratio).tolist()


@pytest.mark.parametrize("which", ["w", "x"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_wanda_ranks_numbers_alone(which: str, value: float, tmp_path: Path) -> None:
    held = {name: x.copy() for name, x in WIDE.items()}
    held[which].flat[1] = value
    with pytest.raises(PlanError, match="a weight or a norm is NaN or infinite"):
        run_plan(tmp_path, held, [{"wanda_": {"target": "w", "norms": "x", "ratio": 0.5}}])


@pytest.mark.parametrize(("pattern", "kept", "group"), PATTERNS)
def test_wanda_keeps_so_many_of_so_many(pattern: str, kept: int, group: int, tmp_path: Path) -> None:
    step = {"target": "w", "norms": "x", "pattern": pattern, "transposed": True}
    found = run_plan(tmp_path, WIDE | {"w": WIDE["w"].T.copy()}, [{"wanda_": step}])["w"].T
    assert found.tolist() == torch_wanda(WIDE["w"], WIDE["x"], 0, kept, group).tolist()
    assert ((found != 0).reshape(8, -1, group).sum(-1) == kept).all()


def test_of_equal_scores_the_first_are_removed(tmp_path: Path) -> None:
    tensors = {"w": np.ones((2, 6), np.float32), "x": np.ones(6, np.float32)}
    found = run_plan(tmp_path, tensors, [{"wanda_": {"target": "w", "norms": "x", "ratio": 0.5}}])["w"]
    assert found.tolist() == [[0, 0, 0, 1, 1, 1]] * 2


def surgeon(w: np.ndarray, h: np.ndarray, choose: Callable[[np.ndarray, int, np.ndarray], np.ndarray | None],
            damping: float = 0.01) -> np.ndarray:  # fmt: skip
    """Columns from left to right, each removed by the optimal brain surgeon with an inverse of its own of the Hessian
    of the columns that are left. `choose(w, column, diagonal)`: new masks from this column on, or None."""
    w, h = w.astype(np.float64).copy(), h.astype(np.float64)
    h = h + damping * np.diag(h).mean() * np.eye(len(h))
    diagonal = np.array([np.linalg.inv(h[j:, j:])[0, 0] for j in range(len(h))])  # each once those before are fixed
    masks = np.zeros(w.shape, bool)
    for j in range(w.shape[1]):
        if (new := choose(w, j, diagonal)) is not None:
            masks[:, j : j + new.shape[1]] = new
        inverse = np.linalg.inv(h[j:, j:])
        for row in np.flatnonzero(masks[:, j]):
            w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
            w[row, j] = 0
    return w


def choose_of_all(ratio: float, columns: int = 128) -> Any:
    def choose(w: np.ndarray, j: int, diagonal: np.ndarray) -> np.ndarray | None:
        if j % columns:
            return None
        scores = w[:, j : j + columns] ** 2 / diagonal[j : j + columns]
        order = np.argsort(scores, axis=None)[: int(scores.size * ratio)]
        mask = np.zeros(scores.size, bool)
        mask[order] = True
        return mask.reshape(scores.shape)

    return choose


def choose_in_groups(kept: int, group: int) -> Any:
    def choose(w: np.ndarray, j: int, diagonal: np.ndarray) -> np.ndarray | None:
        if j % group:
            return None
        scores = w[:, j : j + group] ** 2 / diagonal[j : j + group]
        return scores.argsort(1).argsort(1) < group - kept

    return choose


SPARSE = {f"ratio {r}": ({"ratio": r}, choose_of_all(r)) for r in (0.0, 0.5, 0.9)} | {
    f"pattern {p}": ({"pattern": p}, choose_in_groups(kept, group)) for p, kept, group in PATTERNS
}


@pytest.mark.parametrize("case", SPARSE)
def test_sparsegpt_is_the_surgeon_column_by_column(case: str, tmp_path: Path) -> None:
    keys, choose = SPARSE[case]
    found = run_plan(tmp_path, WIDE, [{"sparsegpt_": {"target": "w", "hessian": "h", **keys}}])["w"]
    wanted = surgeon(WIDE["w"], WIDE["h"], choose)
    assert ((found == 0) == (wanted == 0)).all()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("keys", [{"ratio": 0.5}, {"pattern": "2:4"}], ids=str)
def test_sparsegpt_goes_on_from_block_to_block(keys: dict[str, Any], tmp_path: Path) -> None:
    tensors = {"w": normal((4, 300)), "h": covariance(300, 700)}
    found = run_plan(tmp_path, tensors, [{"sparsegpt_": {"target": "w", "hessian": "h", **keys}}])["w"]
    choose = choose_of_all(0.5) if "ratio" in keys else choose_in_groups(2, 4)
    wanted = surgeon(tensors["w"], tensors["h"], choose)
    assert ((found == 0) == (wanted == 0)).all()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_corrected_weights_give_outputs_that_are_nearer(tmp_path: Path) -> None:
    errors = {}
    steps = {"sparsegpt_": {"hessian": "h"}, "wanda_": {"norms": "x"}}
    norms = np.sqrt(np.diag(WIDE["h"])).astype(np.float32)
    for name, keys in steps.items():
        (tmp_path / name).mkdir()
        step = {name: {"target": "w", "ratio": 0.5, **keys}}
        change = run_plan(tmp_path / name, WIDE | {"x": norms}, [step])["w"] - WIDE["w"]
        errors[name] = np.trace(change @ WIDE["h"] @ change.T)
    assert errors["sparsegpt_"] < 0.8 * errors["wanda_"]


def test_inputs_that_are_always_zero_lose_their_weights(tmp_path: Path) -> None:
    h = WIDE["h"].copy()
    h[5], h[:, 5] = 0, 0
    found = run_plan(tmp_path, WIDE | {"h": h}, [{"sparsegpt_": {"target": "w", "hessian": "h", "ratio": 0.0}}])["w"]
    assert (found[:, 5] == 0).all() and (np.delete(found, 5, 1) == np.delete(WIDE["w"], 5, 1)).all()


TRIANGLES: dict[str, tuple[dict[str, np.ndarray], str, dict[str, Any]]] = {
    "rome_": (BASE, "c", FACT | {"covariance": "c"}),
    "memit_": (BASE, "c", ALL | {"covariance": "c"}),
    "emmet_": (BASE, "c", FACT | {"covariance": "c"}),
    "sparsegpt_": (WIDE, "h", {"target": "w", "hessian": "h", "ratio": 0.5}),
}
"""Edits by a matrix of inner products, of which some tools store a triangle alone."""


@pytest.mark.parametrize("triangle", [np.tril, np.triu])
@pytest.mark.parametrize("name", TRIANGLES)
def test_a_triangle_is_refused_and_may_be_made_whole(name: str, triangle: Any, tmp_path: Path) -> None:
    tensors, key, payload = TRIANGLES[name]
    half = {**tensors, key: triangle(tensors[key])}
    with pytest.raises(PlanError, match="not symmetric"):
        bs.load(plan_of(tmp_path, half, [{name: payload}])).run(durable=False)
    mirror = "tril(l, k=-1)" if triangle is np.tril else "triu(l, k=1)"
    whole = {"compute": {"from": {"l": key}, "expr": f"l + {mirror}.T"}}
    wanted = run_plan(tmp_path, tensors, [{name: payload}])["w"]
    np.testing.assert_array_equal(run_plan(tmp_path, half, [whole, {name: payload}])["w"], wanted)


def test_a_hessian_of_too_few_samples_needs_damping(tmp_path: Path) -> None:
    x = normal((30, 32), np.float64)
    step = {"sparsegpt_": {"target": "w", "hessian": "h", "ratio": 0.5, "damping": 0}}
    plan = plan_of(tmp_path, WIDE | {"h": x.T @ x}, [step])
    with pytest.raises(PlanError, match="raise `damping`"):
        bs.load(plan).run(durable=False)


def test_a_hessian_that_is_not_positive_stops_the_run(tmp_path: Path) -> None:
    step = {"sparsegpt_": {"target": "w", "hessian": "h", "ratio": 0.5}}
    plan = plan_of(tmp_path, WIDE | {"h": -WIDE["h"]}, [step])
    with pytest.raises(PlanError, match="is not positive"):
        bs.load(plan).run(durable=False)


@pytest.mark.parametrize("pattern", ["2:4", 124, "4:2", "two"])
def test_patterns_are_read_as_texts(pattern: Any, tmp_path: Path) -> None:
    found = problems(tmp_path, WIDE, [{"wanda_": {"target": "w", "norms": "x", "pattern": pattern}}])
    assert [d.code for d in found] == ([] if pattern in ("2:4", 124) else ["value-type"])
