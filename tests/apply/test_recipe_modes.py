"""Every recipe that reads no file, applied to trees under `jax.vmap` and `jax.grad`: what it gives outside, and finite
gradients that are the slopes of what it computes, or a reason by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.apply.test_recipes import APPLIED, Trees, flat, given, near

LARGE = {"minilm-forward"}
"""It factorizes 36 matrices as wide as a real model's: minutes for a batch of two. Its ops are in `test_modes.py`."""

NO_GRADIENT: Mapping[str, str] = {
    "magnitude-masks": "grad requires real-valued outputs",  # masks are integers
    "nm-masks": "grad requires real-valued outputs",
}
"""Recipes without a gradient, and the words that say so."""

NO_SLOPE: Mapping[str, str] = {
    "ewc": "a step along a random line makes Fisher information negative, which is refused",
    "flexmore": "it rounds to bfloat16, so that small steps change nothing or all",
    "moe-lowrank": "it rounds to bfloat16, so that small steps change nothing or all",
    "subnetwork-mask": "a mask that moves keeps nothing",
    "minilm-back": "it asserts that words are float32",
}
"""Recipes whose gradients cannot be held against differences of float64, and why."""


def is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def loaded(name: str, folder: Path) -> tuple[Any, Trees]:
    """A recipe as a function of trees, and its trees on the device."""
    plan, trees, _ = given(name, folder)
    return lambda trees: plan.apply(**trees, checks="skip"), jax.tree.map(jnp.asarray, trees)


@pytest.mark.parametrize("name", sorted(set(APPLIED) - LARGE))
def test_a_recipe_is_mapped_over_models(name: str, tmp_path: Path) -> None:
    recipe, trees = loaded(name, tmp_path)
    other = jax.tree.map(lambda x: x * 2 if is_float(x) else x, trees)
    made = flat(jax.vmap(recipe)(jax.tree.map(lambda *pair: jnp.stack(pair), trees, other)))
    for number, model in enumerate((trees, other)):
        alone = flat(recipe(model))
        assert set(made) == set(alone)
        assert [n for n, x in alone.items() if not near(made[n][number], x)] == []


def gradient(recipe: Any, trees: Trees) -> Any:
    """The gradient of the sum of all results, with respect to the floats."""
    floats, rest = ({a: {n: x for n, x in tree.items() if is_float(x) is wanted} for a, tree in trees.items()}
                    for wanted in (True, False))  # fmt: skip

    def total(floats: Trees) -> Any:
        made = flat(recipe({a: {**rest[a], **floats[a]} for a in floats})).values()
        return sum([jnp.sum(x.astype(jnp.float32)) for x in made if is_float(x)] or [jnp.sum(x) for x in made])

    return jax.grad(total)(floats)


@pytest.mark.parametrize("name", sorted(set(APPLIED) - LARGE - set(NO_GRADIENT)))
def test_a_recipe_has_finite_gradients(name: str, tmp_path: Path) -> None:
    found = [np.asarray(x, np.float32) for x in jax.tree.leaves(gradient(*loaded(name, tmp_path)))]
    assert all(np.isfinite(x).all() for x in found)
    assert any(x.any() for x in found)


@pytest.mark.parametrize("name", sorted(NO_GRADIENT))
def test_a_recipe_without_a_gradient_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=NO_GRADIENT[name]):
        gradient(*loaded(name, tmp_path))


@pytest.mark.parametrize("name", sorted(set(APPLIED) - LARGE - set(NO_GRADIENT) - set(NO_SLOPE)))
def test_the_gradient_of_a_recipe_is_its_slope(name: str, tmp_path: Path) -> None:
    rng, weights = np.random.default_rng(0), {}
    with jax.enable_x64(True):
        recipe, trees = loaded(name, tmp_path)
        trees = jax.tree.map(lambda x: x.astype(jnp.float64) if is_float(x) else x, trees)
        floats, rest = ({a: {n: x for n, x in tree.items() if is_float(x) is wanted} for a, tree in trees.items()}
                        for wanted in (True, False))  # fmt: skip

        def total(floats: Trees) -> Any:
            made = {n: x for n, x in flat(recipe({a: {**rest[a], **floats[a]} for a in floats})).items() if is_float(x)}
            for n, x in made.items():
                weights.setdefault(n, rng.normal(size=x.shape))
            return sum(jnp.sum(x * weights[n]) for n, x in made.items())

        def direction(x: Any) -> Any:
            """A step to either side, by which what may not be negative, such as Fisher information, stays so."""
            return rng.normal(size=x.shape) * (jnp.minimum(x, 1) if (x >= 0).all() else 1)

        line = jax.tree.map(direction, floats)

        def at(step: float) -> Any:
            return total(jax.tree.map(lambda x, d: x + step * d, floats, line))

        slopes = jax.tree.map(lambda g, d: jnp.sum(g * d), jax.grad(total)(floats), line)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-4, atol=1e-4)
