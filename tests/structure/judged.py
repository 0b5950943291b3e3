"""Tiny models, edited by plans, and judged by `transformers`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import brainsurgery_jax as bs
from tests.families.models import CLASSES

TOKENS = torch.tensor([[3, 17, 42, 5, 60, 8, 77, 1], [9, 2, 2, 88, 31, 64, 12, 50]])


def make(name: str, folder: Path, **settings: Any) -> Any:
    """A tiny model at random, saved: every tensor other than zero, so that no mistake goes unseen."""
    config, model, sizes = CLASSES[name]
    torch.manual_seed(7)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **settings})).eval()
    return save_random(made, folder)


def save_random(made: Any, folder: Path) -> Any:
    """Give all weights of a model random values, and save it."""
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3 + (1.0 if weight.ndim == 1 else 0.0))
    made.tie_weights()
    made.save_pretrained(folder)
    return made


def edit(source: Path, out: Path, *steps: Mapping[str, Any], **more: Path) -> tuple[bs.Diagnostic, ...]:
    """Run a plan; what it notes."""
    inputs = [f"model::{source}", *(f"{alias}::{path}" for alias, path in more.items())]
    output = {"path": f"{out}/", "alias": "model"}
    plan = bs.load({"inputs": inputs, "transforms": [*steps, {"assert": {"consistent": "model"}}], "output": output})
    notes = tuple(bs.check(plan))
    plan.run(durable=False)
    return notes


def load(folder: Path, cls: str = "") -> Any:
    """The model in a folder, by the class that its config names: every tensor that it wants is there, and no other."""
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures
    (named,) = config.architectures
    found, told = getattr(transformers, cls or named).from_pretrained(folder, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not told[key], (key, told[key])
    return found.eval()


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """What a model says of the tokens."""
    known = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {"input_ids": tokens} if "input_ids" in known else {}
    if "input_features" in known:
        given["input_features"] = torch.linspace(-1, 1, 2 * 8 * 40).reshape(2, 8, 40)
    if "pixel_values" in known:
        given["pixel_values"] = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    if "decoder_input_ids" in known:
        given["decoder_input_ids"] = tokens
    if "use_cache" in known:
        given["use_cache"] = False  # layers that were moved know their old numbers
    with torch.no_grad():
        return model(**given).logits


def assert_same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Both are the same, and not nothing."""
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
