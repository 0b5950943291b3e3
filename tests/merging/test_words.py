"""Models whose tokenizers differ: a merge says which rows are those of other words, and what helps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from tests.checkpoints import read
from tests.structure.judged import make
from tests.structure.test_union import tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

TABLE = "model.embed_tokens.weight"
MERGE = {"merge": {"method": "linear", "models": {"a": 0.5, "b": 0.5}, "to": "m"}}
OWN = ["<unk>", "x", "y", "z", "w"]


def folders(tmp_path: Path, other: Sequence[str] | bytes) -> list[str]:
    """Two Llamas of five words: `a` has those above, `b` others, or another file."""
    inputs = []
    for alias, words in (("a", OWN), ("b", other)):
        make("llama", tmp_path / alias, vocab_size=5)
        content = words if isinstance(words, bytes) else json.dumps(tokenizer("WordLevel", words, {})).encode()
        (tmp_path / alias / "tokenizer.json").write_bytes(content)
        (tmp_path / alias / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        inputs.append(f"{alias}::{tmp_path / alias}")
    return inputs


def noted(inputs: list[str], *steps: Any) -> list[bs.Diagnostic]:
    found = bs.check(bs.load({"inputs": inputs, "transforms": list(steps)}))
    assert not [d for d in found if d.severity != "note"], found
    return [d for d in found if d.code == "merge-words"]


def test_rows_of_other_words_are_told_and_the_remedy_merges_those_of_the_same(tmp_path: Path):
    inputs = folders(tmp_path, ["<unk>", "y", "x", "z", "v"])
    (note,) = noted(inputs, MERGE)
    said = "row 1 of 'lm_head.weight' is 'x' in 'a' and 'y' in 'b', and so 2 more"
    assert note.message == f"merge.models: the tokenizers of 'a' and 'b' differ: {said}"
    (told,) = re.findall("`(.*?)`", note.hint)
    remedy = yaml.safe_load(told)
    assert noted(inputs, remedy, MERGE) == []
    out = {"path": f"{tmp_path}/out/", "alias": "m"}
    bs.load({"inputs": inputs, "transforms": [remedy, MERGE], "output": out}).run(durable=False)
    a, b = (read(tmp_path / alias / "model.safetensors")[TABLE] for alias in "ab")
    wanted = [(a[n] + b[m]) / 2 for n, m in enumerate((0, 2, 1, 3))] + [a[4]]
    made = read(tmp_path / "out/model.safetensors")[TABLE]
    np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-7)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "a/tokenizer.json").read_bytes()


def test_the_same_words_in_another_file_and_further_words_are_no_news(tmp_path: Path):
    assert noted(folders(tmp_path, json.dumps(tokenizer("WordLevel", OWN, {}), indent=2).encode()), MERGE) == []
    assert noted(folders(tmp_path, [*OWN, "more"]), MERGE) == []


def test_a_merge_of_layers_alone_reads_no_tokenizer(tmp_path: Path):
    inputs = folders(tmp_path, ["<unk>", "y", "x", "z", "v"])
    assert noted(inputs, {"merge": {**MERGE["merge"], "of": r"model\.layers\..*"}}) == []


def test_a_tokenizer_that_is_not_understood_is_passed_on(tmp_path: Path):
    assert noted(folders(tmp_path, b"no JSON"), MERGE) == []
