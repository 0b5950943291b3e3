"""Aliases that no reference could name: every step that makes an alias refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import normal, problems

MODELS = {name: {"q.weight": normal((4, 4), np.float32, seed)} for seed, name in enumerate("ab")}
STEPS: list[tuple[str, dict[str, Any], str]] = [
    ("merge", {"method": "linear", "models": ["a", "b"]}, "to"),
    ("lora_extract", {"base": "a", "tuned": "b", "rank": 2}, "to"),
    ("prefixes", {"mode": "add"}, "alias"),
    ("prefixes", {"mode": "rename", "from": "a"}, "to"),
    ("load", {"path": "{folder}/c.npz"}, "alias"),
]


@pytest.mark.parametrize(("op", "keys", "key"), STEPS)
@pytest.mark.parametrize("alias", ["m::", "m::x"])
def test_an_alias_with_colons_is_refused_with_the_one_that_is_meant(
    tmp_path: Path, op: str, keys: dict[str, Any], key: str, alias: str
) -> None:
    np.savez(tmp_path / "c.npz", w=np.ones(2, np.float32))
    filled = {name: value.format(folder=tmp_path) if name == "path" else value for name, value in keys.items()}
    (found,) = problems(tmp_path, MODELS, {op: {**filled, key: alias}})
    assert (found.code, found.hint) == ("value-type", f"Write the alias alone: `{key}: m`.")
    assert not [d for d in problems(tmp_path, MODELS, {op: {**filled, key: "m"}}) if d.code == "value-type"]
