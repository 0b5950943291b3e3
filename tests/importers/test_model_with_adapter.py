"""`MODEL+ADAPTER` in a configuration of mergekit: the adapter is merged first, the result takes part in the merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.importers.mergekit import plan_of
from tests.checkpoints import normal, read, write
from tests.hints.calls import hint_of
from tests.importers.merges import (
    INNER,
    LAYERS,
    WIDTH,
    WORDS,
    Tensors,
    in_layer,
    layer_of,
    models,
    put_config,
    put_models,
)

RANK, ALPHA = 2, 6
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def put_adapter(folder: Path, *, of_the_table: bool = False) -> Tensors:
    """An adapter `lora` of all `up_proj`, or of the table of tokens; yields what it adds, by name."""
    (folder / "lora").mkdir()
    held: Tensors = {}
    changes: Tensors = {}
    if of_the_table:
        left, right = normal((RANK, WORDS), seed=5), normal((WIDTH, RANK), seed=6)
        prefix = "base_model.model.model.embed_tokens.lora_embedding_"
        held = {f"{prefix}A": left, f"{prefix}B": right}
        changes[TABLE] = ALPHA / RANK * (right.astype(np.float64) @ left).T
    for i in range(0 if of_the_table else LAYERS):
        left, right = normal((RANK, WIDTH), seed=500 + i), normal((INNER, RANK), seed=600 + i)
        name = f"model.layers.{i}.mlp.up_proj"
        held |= {f"base_model.model.{name}.lora_{x}.weight": value for x, value in (("A", left), ("B", right))}
        changes[f"{name}.weight"] = ALPHA / RANK * (right.astype(np.float64) @ left)
    write(folder / "lora" / "adapter_model.safetensors", held)
    says = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA,
            "target_modules": ["embed_tokens" if of_the_table else "up_proj"]}  # fmt: skip
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(says))
    return changes


def tuned(model: Tensors, changes: Tensors) -> Tensors:
    return {name: x + changes.get(name, 0) for name, x in model.items()}


def merged(folder: Path, config: Any) -> Tensors:
    (folder / "plan.yaml").write_text(plan_of(put_config(folder, config).name))
    bs.load("plan.yaml").run(durable=False)
    return read(folder / "merged" / "model.safetensors")


def compare(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, exact in expected.items():
        np.testing.assert_allclose(found[name].astype(np.float64), exact, rtol=1e-6, atol=3e-6)


def test_a_mean_takes_the_model_with_its_adapter(here: Path):
    held, changes = put_models(here), put_adapter(here)
    with_adapter = tuned(held["a"], changes)
    found = merged(here, {"merge_method": "linear", "models": models(**{"a+lora": 0.25, "b": 0.75})})
    compare(found, {name: 0.25 * x + 0.75 * held["b"][name] for name, x in with_adapter.items()})


def test_a_model_may_stand_beside_itself_with_an_adapter(here: Path):
    held, changes = put_models(here), put_adapter(here)
    config = {"merge_method": "task_arithmetic", "base_model": "a", "models": models(**{"a+lora": 0.5, "b": 0.25})}
    found = merged(here, config)
    b = held["b"]
    compare(found, {n: x + 0.5 * changes.get(n, 0) + 0.25 * (b[n] - x) for n, x in held["a"].items()})


def test_the_base_may_have_an_adapter(here: Path):
    held, changes = put_models(here), put_adapter(here)
    base, b = tuned(held["a"], changes), held["b"]
    found = merged(here, {"merge_method": "task_arithmetic", "base_model": "a+lora", "models": models(b=0.5)})
    compare(found, {name: x + 0.5 * (b[name] - x) for name, x in base.items()})


def test_a_step_merge_takes_it_too(here: Path):
    held, changes = put_models(here), put_adapter(here)
    config = {"merge_method": "nearswap", "base_model": "b", "models": models(**{"a+lora": None}),
              "parameters": {"t": 0.01}}  # fmt: skip
    near = {}
    for name, x in tuned(held["a"], changes).items():
        base = held["b"][name]
        gap = np.abs(base - x)
        near[name] = base + np.clip(0.01 / np.where(gap == 0, 1, gap), 0, 1) * (x - base)
    compare(merged(here, config), near)


def test_layers_are_taken_from_it(here: Path):
    held, changes = put_models(here), put_adapter(here)
    slices = [{"sources": [{"model": m, "layer_range": [0, 2]}]} for m in ("a+lora", "b")]
    found = merged(here, {"merge_method": "passthrough", "slices": slices})
    expected = {TABLE: held["a"][TABLE]} | {n: held["b"][n] for n in ("model.norm.weight", HEAD)}
    for at, model in ((0, tuned(held["a"], changes)), (2, held["b"])):
        expected |= {in_layer(n, at + i): x for n, x in model.items() if (i := layer_of(n)) in (0, 1) and i is not None}
    compare(found, expected)


def test_an_adapter_of_the_hub_comes_with_how_to_fetch_it(here: Path):
    put_models(here)
    text = plan_of(put_config(here, {"merge_method": "linear", "models": models(**{"a+org/lora": 1, "b": 1})}).name)
    assert "  - a::a\n  - a_lora::org/lora  # hf download org/lora --local-dir org/lora\n" in text
    assert "  - lora_merge: {base: a, adapters: a_lora}\n" in text


@pytest.mark.parametrize(
    ("reference", "message"),
    [("a+none", "no adapter at 'none'"), ("a+lora+lora", "at most one adapter"), ("a+", "at most one adapter")],
)
def test_what_is_no_model_with_an_adapter_is_refused(here: Path, reference: str, message: str):
    put_models(here)
    put_adapter(here)
    with pytest.raises(bs.PlanError, match=message):
        plan_of(put_config(here, {"merge_method": "linear", "models": models(**{reference: 1, "b": 1})}).name)


def test_an_adapter_that_gives_a_tied_model_a_head_is_merged_by_a_plan_of_its_own(here: Path):
    """The head would be a tensor that no header holds yet: slices would lose it."""
    held = put_models(here, tie_word_embeddings=True)
    for letter in "ab":
        path = here / letter / "model.safetensors"
        write(path, {name: x for name, x in read(path).items() if name != HEAD}, {"format": "pt"})
    changes = put_adapter(here, of_the_table=True)

    def config(model: str) -> str:
        slices = [{"sources": [{"model": m, "layer_range": [i, i + 1]}]} for i, m in enumerate((model, model))]
        return put_config(here, {"merge_method": "passthrough", "slices": slices}).name

    said = hint_of(lambda: plan_of(config("a+lora")), "Merge it first, by a plan of its own")
    assert "`[m::a, l::lora]`" in said
    steps = [{"lora_merge": {"base": "m", "adapters": "l"}}]
    made = {"inputs": ["m::a", "l::lora"], "transforms": steps, "output": {"path": "merged-lora/", "alias": "m"}}
    bs.load(made).run(durable=False)
    (here / "plan.yaml").write_text(plan_of(config("merged-lora/")))
    bs.load("plan.yaml").run(durable=False)
    found = read(here / "merged" / "model.safetensors")
    np.testing.assert_allclose(found[TABLE], held["a"][TABLE] + changes[TABLE], rtol=1e-6, atol=3e-6)
    np.testing.assert_allclose(found[HEAD], held["a"][TABLE], rtol=1e-6)


def test_an_adapter_whose_changes_are_unknown_is_fetched_before_slices_of_a_tied_model(here: Path):
    put_models(here)
    path = here / "a" / "model.safetensors"
    write(path, {name: x for name, x in read(path).items() if name != HEAD}, {"format": "pt"})
    slices = [{"sources": [{"model": "a+org/lora", "layer_range": [0, 2]}]}]
    config = put_config(here, {"merge_method": "passthrough", "slices": slices}).name
    hint = "Download it, then import again: `hf download org/lora --local-dir org/lora`."
    hint_of(lambda: plan_of(config), hint)
    put_adapter(here)
    (here / "org").mkdir()
    (here / "lora").rename(here / "org" / "lora")
    assert "lora_merge: {base: a, adapters: a_lora}" in plan_of(config)
