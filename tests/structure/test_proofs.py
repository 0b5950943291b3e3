"""`prove: true`: steps that keep the logits prove it, and one that does not keep them is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

P = {"prove": True}


@pytest.mark.parametrize(("name", "steps"), [
    ("llama-tied", [{"untie": P}, {"tie": P}]),
    ("mistral", [{"fuse": P}, {"unfuse": P}]),
    ("mixtral", [{"experts": {"names": "stacked", **P}}, {"experts": {"names": "separate", **P}}]),
    ("qwen3", [{"upcycle": {"experts": 4, "router": "random", **P}}]),
    ("mistral", [{"upcycle": {"experts": 4, "shards": 2, **P}}]),
])  # fmt: skip
def test_steps_that_keep_the_logits_prove_it(name: str, steps: list[Any], tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", *steps)
    assert_same(logits(load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize(("name", "wrong", "why"), [
    ("llama", {"tie": {"replace": True, **P}}, r"tie: assert\.logits: the logits of .* the largest difference is"),
    ("mistral", {"upcycle": {"experts": 4, "drop": 0.5, **P}}, r"upcycle: assert\.logits: the logits of"),
    ("llama", {"upcycle": {"experts": 4, "to": "olmoe", **P}}, r"upcycle: assert\.logits: the logits of"),
    ("gpt2", {"unfuse": P}, r"unfuse: assert\.logits: the forward pass of this family never reads"),
])  # fmt: skip
def test_a_step_that_changes_the_logits_is_stopped_by_its_proof(
    name: str, wrong: Any, why: str, tmp_path: Path
) -> None:
    make(name, tmp_path / "whole")
    with pytest.raises(PlanError, match=why):
        edit(tmp_path / "whole", tmp_path / "out", wrong)
    assert not (tmp_path / "out").exists()
