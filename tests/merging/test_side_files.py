"""What a step makes of whole models has the config and the tokenizer of the model that it starts from, wherever that
stands among the inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import write

INPUTS = ("other", "one", "two", "adapter", "tuned")


@pytest.fixture(autouse=True)
def checkpoints(here: Path) -> None:
    for name in ("other", "one", "two", "tuned"):
        Path(name).mkdir()
        rng = np.random.default_rng(len(name))
        write(f"{name}/model.safetensors", {"w.weight": rng.standard_normal((4, 4)).astype(np.float32)})
        Path(f"{name}/config.json").write_text(json.dumps({"model_type": "llama", "name": name}))
        Path(f"{name}/tokenizer.json").write_text(json.dumps({"name": name}))
    Path("adapter").mkdir()
    factors = {"lora_A": np.ones((2, 4), np.float32), "lora_B": np.ones((4, 2), np.float32)}
    write("adapter/adapter_model.safetensors", {f"base_model.model.w.{k}.weight": x for k, x in factors.items()})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["w"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    Path("adapter/tokenizer.json").write_text(json.dumps({"name": "adapter"}))


def run(step: Mapping[str, Any], **output: Any) -> Path:
    plan = {"inputs": [f"{name}::{name}" for name in INPUTS], "transforms": [step]}
    bs.run(bs.load({**plan, "output": {"path": "out", "alias": "made", **output}}))
    return Path("out")


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ({"merge": {"method": "linear", "models": ["one", "two"]}}, "one"),
        ({"merge": {"method": "task_arithmetic", "base": "two", "models": ["one"]}}, "two"),
        ({"lora_merge": {"base": "one", "adapters": "adapter"}}, "one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_model_has_the_config_and_the_tokenizer_of_the_one_that_it_starts_from(
    step: Mapping[str, Any], name: str
) -> None:
    ((op, keys),) = step.items()
    out = run({op: {**keys, "to": "made"}})
    assert json.loads((out / "config.json").read_text())["name"] == name
    assert json.loads((out / "tokenizer.json").read_text())["name"] == name


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ({"lora_extract": {"base": "one", "tuned": "tuned", "rank": 1}}, "one"),
        ({"lora_resize": {"adapter": "adapter", "rank": 1}}, "adapter"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_an_adapter_has_the_tokenizer_of_what_it_starts_from(step: Mapping[str, Any], name: str) -> None:
    ((op, keys),) = step.items()
    out = run({op: {**keys, "to": "made"}}, format="peft")
    assert json.loads((out / "tokenizer.json").read_text())["name"] == name
    assert not (out / "config.json").exists()


def test_an_alias_that_exists_keeps_its_own() -> None:
    steps: list[dict[str, Any]] = [{"prefixes": {"mode": "add", "alias": "made"}}]
    steps += [{"copy": {"from": "two::(.*)", "to": "made::\\1"}}]
    steps += [{"merge": {"method": "linear", "models": ["one", "other"], "to": "made"}}]
    plan = {"inputs": [f"{name}::{name}" for name in INPUTS], "transforms": steps}
    bs.run(bs.load({**plan, "output": {"path": "out", "alias": "made"}}))
    assert json.loads(Path("out/config.json").read_text())["name"] == "two"
