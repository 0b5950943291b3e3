"""What `format: peft` needs is known from headers: a plan that lacks it is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import normal, plan_of

NAME = "base_model.model.layers.{}.q_proj.lora_{}.weight"
A, B = {NAME.format(0, "A"): normal((2, 3))}, {NAME.format(0, "B"): normal((4, 2))}
ALPHA: dict[str, Any] = {"lora_alpha": 2}


def factorize(rank: Any, layer: int = 0) -> dict[str, Any]:
    names = {f"target_{x}": NAME.format(layer, x.upper()) for x in "ab"}
    return {"phlora": {"target": f"w{layer}", "rank": rank, **names}}


def refuse(folder: Path, tensors: Any, steps: Any, config: Any) -> str:
    """What the check of a plan says, which no run comes behind."""
    made = plan_of(folder, tensors, steps)
    made["output"] = {"path": str(folder / "lora"), "format": "peft", "options": {"config": config}}
    with pytest.raises(PlanError) as caught:
        bs.load(made).explain()
    (found,) = caught.value.diagnostics
    assert found.code == "adapter-config"
    return found.message


@pytest.mark.parametrize(("tensors", "config", "why"), [
    (A, ALPHA, "is the only factor of 'layers.0.q_proj'"),
    ({**A, NAME.format(0, "B"): normal((4, 3))}, ALPHA, "f32[2,3] does not fit"),
    ({**A, **B}, {"lora_alpha": "two"}, "'lora_alpha' is 'two', and PEFT takes a number"),
    ({**A, **B}, {"lora_alpha": True}, "'lora_alpha' is True, and PEFT takes a number"),
    ({**A, **B}, {**ALPHA, "r": 2.0}, "'r' is 2.0, and PEFT takes a whole number"),
    ({**A, **B}, {**ALPHA, "target_modules": 3}, "'target_modules' is 3"),
    ({**A, **B}, {**ALPHA, "rank_pattern": ["q_proj"]}, "PEFT takes a mapping of patterns to ranks"),
    ({**A, **B}, {**ALPHA, "use_dora": "yes"}, "'use_dora' is 'yes', and PEFT takes true or false"),
])  # fmt: skip
def test_what_peft_cannot_load_is_refused(tensors: Any, config: Any, why: str, tmp_path: Path):
    assert why in refuse(tmp_path, tensors, [], config)


@pytest.mark.parametrize("config", [{}, ALPHA], ids=["no alpha", "one alpha for all"])
def test_alphas_for_ranks_that_only_data_tell_are_asked_for_first(config: Any, tmp_path: Path):
    tensors = {f"w{at}": normal((6, 5), seed=at) for at in range(2)}
    steps = [factorize({"energy": 0.7}, layer) for layer in range(2)]
    assert "only data tell the ranks" in refuse(tmp_path, tensors, steps, config)


def test_an_alpha_for_one_matrix_of_any_rank_is_enough(tmp_path: Path):
    made = plan_of(tmp_path, {"w0": normal((6, 5))}, [factorize({"energy": 0.7})])
    made["output"] = {"path": str(tmp_path / "lora"), "format": "peft", "options": {"config": ALPHA}}
    bs.load(made).run(durable=False)
    assert np.ndim(bs.open(str(tmp_path / "lora"))[NAME.format(0, "A")]) == 2


def test_an_adapter_that_peft_would_not_find_is_noted_and_the_remedy_works(tmp_path: Path):
    made = plan_of(tmp_path, {**A, **B}, [])
    made["output"] = {"path": str(tmp_path / "lora"), "format": "peft", "options": {"config": ALPHA}}
    bs.load(made).run(durable=False)
    again = {"inputs": [str(tmp_path / "lora")], "output": {"path": str(tmp_path / "copy")}}
    (note,) = bs.check(bs.load(again))
    assert note.code == "adapter-unfound" and note.severity == "note" and "`format: peft`" in note.hint
    mended = bs.load({**again, "output": {**again["output"], "format": "peft"}})
    assert not bs.check(mended)
    mended.run(durable=False)
    assert sorted(bs.open(str(tmp_path / "copy"))) == sorted({**A, **B})
    assert (tmp_path / "copy" / "adapter_model.safetensors").exists()


def test_adapters_in_a_format_that_the_plan_names_are_not_noted(tmp_path: Path):
    made = plan_of(tmp_path, {**A, **B}, [])
    made["output"] = {"path": str(tmp_path / "lora"), "format": "peft", "options": {"config": ALPHA}}
    bs.load(made).run(durable=False)
    for output in ({"path": str(tmp_path / "ckpt"), "format": "safetensors"}, str(tmp_path / "one.safetensors")):
        assert not bs.check(bs.load({"inputs": [str(tmp_path / "lora")], "output": output}))
