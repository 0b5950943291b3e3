"""The plans of closed-form edits, against what NumPy says, and how few lines they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import normal, read, write
from tests.editing.test_methods import choose_in_groups, surgeon, torch_wanda
from tests.plans.count_lines import plan_lines

PLANS = Path(__file__).resolve().parents[2] / "plans"
Tensors = dict[str, np.ndarray]
Oracle = Callable[[dict[str, Tensors]], Tensors]
INNER, OUTER = 8, 6


def gpt2() -> Tensors:
    layers = {f"h.{n}.mlp.c_proj.weight": normal((INNER, OUTER), seed=n) for n in range(9)}
    return layers | {"wte.weight": normal((10, OUTER), seed=20)}


def llama(seed: int = 0) -> Tensors:
    sizes = {"self_attn.q_proj": (OUTER, OUTER), "mlp.up_proj": (INNER, OUTER), "mlp.gate_proj": (INNER, OUTER),
             "mlp.down_proj": (OUTER, INNER)}  # fmt: skip
    return {f"layers.{n}.{name}.weight": normal(size, seed=seed + 10 * n + at)
            for n in range(2) for at, (name, size) in enumerate(sizes.items())} | {
        "norm.weight": normal((OUTER,), seed=seed + 30)}  # fmt: skip


def products(size: int, seed: int) -> np.ndarray:
    x = normal((5 * size, size), np.float64, seed)
    return (x.T @ x).astype(np.float32)


def inputs(statistic: Callable[[int, int], np.ndarray]) -> Tensors:
    """A statistic of the inputs of each projection."""
    return {n.removesuffix(".weight"): statistic(x.shape[1], at) for at, (n, x) in enumerate(llama().items())
            if "_proj" in n}  # fmt: skip


def exactly(w: np.ndarray, keys: np.ndarray, values: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The least change, where the covariance is the identity, that meets every fact; the matrix is [in, out]."""
    factor, k = np.linalg.cholesky(c.astype(np.float64)), np.atleast_2d(keys).astype(np.float64)
    change = (np.atleast_2d(values) - k @ w).T @ np.linalg.pinv(np.linalg.solve(factor, k.T)) @ np.linalg.inv(factor)
    return w + change.T


def memit(held: dict[str, Tensors]) -> Tensors:
    facts = held["facts"]
    made = {}
    for n in range(3, 8):
        rows = np.concatenate([facts[f"keys.{n}"], np.sqrt(7) * np.linalg.cholesky(facts[f"covariance.{n}"]).T])
        wanted = np.concatenate([0.2 * facts["residuals"], np.zeros((INNER, OUTER))])
        name = f"h.{n}.mlp.c_proj.weight"
        made[name] = held["model"][name] + np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return made


def aligned(held: dict[str, Tensors]) -> Tensors:
    """Both models are one, but for the order of hidden units."""
    return held["a"]


def shuffled(t: Tensors) -> Tensors:
    order = np.random.default_rng(4).permutation(INNER)
    cut = {"up_proj": lambda x: x[order], "gate_proj": lambda x: x[order], "down_proj": lambda x: x[:, order]}
    return {n: next((f(x) for part, f in cut.items() if part in n), x) for n, x in t.items()}


ONE = {"key": normal((INNER,), seed=1), "value": normal((OUTER,), seed=2), "covariance": products(INNER, 3)}
MANY = {"keys": normal((3, INNER), seed=1), "values": normal((3, OUTER), seed=2), "covariance": products(INNER, 3)}
SHARED = {f"keys.{n}": normal((3, INNER), seed=n) for n in range(3, 8)} | {
    f"covariance.{n}": products(INNER, n) for n in range(3, 8)} | {"residuals": normal((3, OUTER), seed=9)}  # fmt: skip
NAME = "h.4.mlp.c_proj.weight"
EDITS: dict[str, tuple[int, dict[str, Tensors], dict[str, Any], Oracle]] = {
    "rome": (8, {"model": gpt2(), "fact": ONE}, {"layer": 4},
             lambda h: {NAME: exactly(h["model"][NAME], *(h["fact"][n] for n in ("key", "value", "covariance")))}),
    "emmet": (8, {"model": gpt2(), "facts": MANY}, {"layer": 4},
              lambda h: {NAME: exactly(h["model"][NAME], *(h["facts"][n] for n in ("keys", "values", "covariance")))}),
    "memit": (10, {"model": gpt2(), "facts": SHARED}, {"weight": 7}, memit),
    "wanda": (6, {"model": llama(), "norms": inputs(lambda n, seed: np.abs(normal((n,), seed=seed)))}, {"ratio": 0.4},
              lambda h: {f"{n}.weight": torch_wanda(h["model"][f"{n}.weight"], x, 0.4)
                         for n, x in h["norms"].items()}),
    "sparsegpt": (6, {"model": {n: x for n, x in llama().items() if "_proj" not in n or x.shape[1] == INNER},
                      "hessians": inputs(products)}, {},
                  lambda h: {n: surgeon(x, h["hessians"][n.removesuffix(".weight")], choose_in_groups(2, 4))
                             for n, x in h["model"].items() if "_proj" in n}),
    "ewc": (6, {"tuned": llama(), "base": llama(100), "fisher": {n: x**2 for n, x in llama(200).items()}},
            {"strength": 3},
            lambda h: {n: (x + 3 * h["fisher"][n] * h["base"][n]) / (1 + 3 * h["fisher"][n])
                       for n, x in h["tuned"].items()}),
    "rebasin": (8, {"a": llama(), "b": shuffled(llama())}, {}, aligned),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_what_numpy_says(name: str, tmp_path: Path) -> None:
    _, held, settings, oracle = EDITS[name]
    paths = {alias: str(write(tmp_path / f"{alias}.safetensors", tensors)) for alias, tensors in held.items()}
    out = str(tmp_path / "out.safetensors")
    bs.load(PLANS / f"{name}.yaml", **paths, **settings, out=out).run(durable=False)
    made, (alias, *_) = read(out), held
    wanted = held[alias] | oracle(held)
    assert set(made) == set(wanted)
    for tensor, x in wanted.items():
        np.testing.assert_allclose(made[tensor], x, atol=2e-5, err_msg=tensor)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_takes_few_lines(name: str) -> None:
    assert plan_lines((PLANS / f"{name}.yaml").read_text(encoding="utf-8")) <= EDITS[name][0]
