"""What mergekit itself makes of the configurations that are imported, beside what our plans make of them.

`make mergekit` runs these: mergekit wants an environment of its own, and a missing one is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.importers.mergekit import plan_of
from brainsurgery_jax.importers.mergekit_config import BY_EXPRESSION
from tests.behaviour.homes import ROOT
from tests.checkpoints import read
from tests.importers.merges import CASES, models, put_config, put_models
from tests.importers.test_tokenizers import OWN, TABLES, put_tokenizer, words_of


def mergekit(config: Path) -> dict[str, np.ndarray]:
    """The tensors that mergekit writes."""
    program = ROOT / os.environ.get("BEHAVIOUR_MERGEKIT", ".venv-mergekit/bin/mergekit-yaml")
    if not program.exists():
        raise FileNotFoundError(f"no mergekit at {program}: `make mergekit` installs it and runs the tests")
    done = subprocess.run([program, config.name, "theirs"], cwd=config.parent, capture_output=True, text=True,
                          env=os.environ | {"HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return read(config.parent / "theirs" / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_mergekit_makes_the_same(here: Path, case: str, dtype: str):
    put_models(here, dtype)
    # mergekit takes a bare name for one on the hub.
    text = json.dumps(CASES[case].config)
    config = put_config(here, json.loads(re.sub(r'"([abc])"', r'"./\1"', text)))
    theirs = mergekit(config)
    (here / "plan.yaml").write_text(plan_of(config.name))
    bs.load("plan.yaml").run(durable=False)
    ours = read(here / "merged" / "model.safetensors")
    assert {name: x.dtype for name, x in ours.items()} == {name: x.dtype for name, x in theirs.items()}
    # mergekit takes the difference to the base in the dtype of the tensors; we round once, at the end.
    # So it does in the steps of other methods, and where rounding turns a vote single entries are others.
    plain = CASES[case].config["merge_method"] in BY_EXPRESSION
    steps = (3 if "task" in case else 1) if plain else 4
    rounding = 2.0**-7 if dtype == "bfloat16" else 2.0**-22
    worst = {"": 0.0}
    for name, x in theirs.items():
        scale = np.abs(x.astype(np.float64))
        scale = scale.max() if "task" in case or not plain else scale
        off = np.abs(ours[name].astype(np.float64) - x.astype(np.float64))
        worst[name] = float(off.max())
        within = off <= steps * rounding * scale + 1e-6
        assert np.all(within) if plain or dtype == "float32" else np.mean(within) > 0.97, (name, off.max())
    print(f"{case} in {dtype}: at most {max(worst.values()):.3g} apart")


# --- Tokenizers -------------------------------------------------------------------------------------------------------

MERGES: Mapping[str, Mapping[str, Any]] = {
    "linear": {"merge_method": "linear", "models": models(**{"./a": 1, "./b": 2, "./c": 1})},
    "task arithmetic": {"merge_method": "task_arithmetic", "models": models(**{"./b": 0.5, "./c": 0.25})},
    "slerp": {"merge_method": "slerp", "models": models(**{"./b": None}), "parameters": {"t": 0.3}},
}
DOG = {"kind": "model_token", "model": "./b", "token": "Ġdog"}
SOURCES: Mapping[str, Any] = {
    "union": "union",
    "base": "base",
    "path": "./b",
    "words": {"source": "union", "tokens": {"Ġcat": {"source": DOG, "force": True}, "<|x|>": {"source": "./a"}}},
    "padded": {"source": "union", "pad_to_multiple_of": 16},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("merge", MERGES)
def test_mergekit_gives_every_word_the_same_row(here: Path, merge: str, source: str):
    put_models(here)
    for letter, words in OWN.items():
        put_tokenizer(here / letter, words)
    asked = SOURCES[source]
    key = "tokenizer_source" if isinstance(asked, str) else "tokenizer"
    config = put_config(here, {**MERGES[merge], "base_model": "./a", "dtype": "float32", key: asked})
    theirs = mergekit(config)
    (here / "plan.yaml").write_text(plan_of(config.name))
    bs.load("plan.yaml").run(durable=False)
    ours = read(here / "merged" / "model.safetensors")
    # Which number a word has is the choice of either: mergekit takes the models of a union in any order.
    mine, other = words_of(here / "merged"), words_of(here / "theirs")
    assert mine.keys() == other.keys()
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}
    worst = 0.0
    for name, x in theirs.items():
        rows = [(mine[word], other[word]) for word in mine] if name in TABLES else [(slice(None), slice(None))]
        for one, two in rows:
            np.testing.assert_allclose(ours[name][one], x[two], rtol=2.0**-20, atol=2e-6)
            worst = max(worst, float(np.abs(ours[name][one] - x[two]).max()))
    print(f"{source} tokenizer, {merge}: at most {worst:.3g} apart")
