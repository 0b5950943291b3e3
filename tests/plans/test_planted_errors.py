"""Errors that the asserts of worked plans catch: without these asserts each of them goes through unseen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from tests.checkpoints import normal, write

PLANS = Path(__file__).resolve().parents[2] / "plans"
Arrays = dict[str, np.ndarray]


def gpt2() -> Arrays:
    """Two layers of the names of GPT-2, eight wide."""
    made = {"wte.weight": normal((12, 8), seed=1), "ln_f.weight": np.ones(8, np.float32)}
    shapes = {"attn.c_attn.weight": (8, 24), "attn.c_attn.bias": (24,), "attn.c_proj.weight": (8, 8),
              "mlp.c_proj.weight": (8, 8)}  # fmt: skip
    for layer in (0, 11):
        for at, (name, shape) in enumerate(shapes.items()):
            made[f"h.{layer}.{name}"] = normal(shape, seed=100 * layer + at + 2)
    return made


def experts(seed: int) -> Arrays:
    return {f"layers.0.mlp.experts.{e}.{kind}.weight": normal((4, 6), seed=seed + e).astype(ml_dtypes.bfloat16)
            for e in range(2) for kind in ("up_proj",)}  # fmt: skip


class Planted(NamedTuple):
    """A plan, what is put in place of a text of it, or what becomes of its inputs, and the assert that stops it."""

    plan: str
    old: str
    new: str
    says: str
    spoil: Callable[[Arrays], object] = lambda tensors: None


def _spoil(tensors: Arrays) -> None:
    tensors["h.11.attn.c_attn.weight"][3, 20] = np.nan


SCALE = r"  - scale_: {target: 'h\.\d+\.attn\.c_proj\.weight', by: 0.5}" + "\n"
BIASES = r"{w: 'h\.\d+\.attn\.c_attn\.(weight|bias)'}"
TIE = r"  - copy: {from: 'transformer\.wte\.weight', to: lm_head.weight}"
PLANTED = {
    "name of another tensor that exists": Planted("bulk_regex", r"{target: 'h\.\d+\.attn\.c_proj",
        r"{target: 'h\.\d+\.mlp\.c_proj", "assert.writes"),
    "pattern reaches too few": Planted("bulk_regex", r"{target: 'h\.\d+\.attn\.c_proj",
        r"{target: 'h\.\d\.attn\.c_proj",
        "assert.writes"),
    "pattern reaches too many": Planted("bulk_regex", r"{target: 'h\.\d+\.attn\.c_proj",
        r"{target: 'h\.\d+\..+\.c_proj",
        "assert.unchanged"),
    "bias forgotten: scaled weight": Planted("bulk_regex", BIASES, BIASES.replace("(weight|bias)", "weight"),
        "assert.writes"),
    "scale applied twice in one plan": Planted("bulk_regex", SCALE, SCALE * 2, "assert.writes"),
    "NaN in an input that is scaled": Planted("bulk_regex", "", "", "assert.finite", _spoil),
    "stale tied weight: the head is another table": Planted("prefix_rewrite", TIE, TIE + "\n"
        "  - scale_: {target: transformer.wte.weight, by: 2}", "assert.tied"),
    "wrong alias written": Planted("moe_lowrank", "alias: moe,", "alias: start,", "assert.all"),
    "wrong dtype of the output: last cast forgotten": Planted("moe_lowrank",
        r"  - cast_: {target: 'moe::.+\.experts\..+', to: bfloat16}" + "\n", "", "assert.all"),
}  # fmt: skip


def settings(planted: Planted, folder: Path) -> dict[str, Any]:
    if planted.plan == "moe_lowrank":
        for name, seed in (("start", 1), ("moe", 9)):
            write(folder / f"{name}.safetensors", experts(seed))
        files = {name: str(folder / f"{name}.safetensors") for name in ("start", "moe")}
        return {**files, "rank": 2, "out": str(folder / "out")}
    tensors = gpt2()
    planted.spoil(tensors)
    model = str(write(folder / "m.safetensors", tensors))
    return {"model": model, "out": str(folder / "out.safetensors")}


def load(planted: Planted, folder: Path, *, asserts: bool = True, wrong: bool = True) -> bs.Plan:
    text = (PLANS / f"{planted.plan}.yaml").read_text(encoding="utf-8")
    assert planted.old in text
    plan: Mapping[str, Any] = yaml.safe_load(text.replace(planted.old, planted.new, 1) if wrong else text)
    if not asserts:
        steps = [step for step in plan["transforms"] if "assert" not in step]
        output = plan["output"]
        kept = {k: v for k, v in output.items() if k != "asserts"} if isinstance(output, dict) else output
        plan = {**plan, "transforms": steps, "output": kept}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return bs.load(folder / "plan.yaml", **settings(planted, folder))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_stopped_by_an_assert_of_the_plan_and_unseen_without(name: str, tmp_path: Path):
    planted = PLANTED[name]
    with pytest.raises(bs.PlanError, match=planted.says):
        load(planted, tmp_path).run(durable=False)
    load(planted, tmp_path, asserts=False).run(durable=False)


@pytest.mark.parametrize("plan", sorted({planted.plan for planted in PLANTED.values()}))
def test_the_asserts_let_the_right_plan_pass(plan: str, tmp_path: Path):
    clean = next(planted for planted in PLANTED.values() if planted.plan == plan)._replace(spoil=lambda tensors: None)
    load(clean, tmp_path, wrong=False).run(durable=False)


def test_an_expert_that_is_not_a_copy_is_found_whichever_it_is(tmp_path: Path):
    (step,) = (s for s in yaml.safe_load((PLANS / "moe_upcycle.yaml").read_text())["transforms"]
               if "equal" in s.get("assert", {}))  # fmt: skip
    whole = {f"m.experts.{e}.w": np.ones(3, np.float32) for e in range(4)}
    model = tmp_path / "m.safetensors"
    for spoiled in range(4):
        write(model, {**whole, f"m.experts.{spoiled}.w": np.zeros(3, np.float32)})
        with pytest.raises(bs.PlanError, match=r"assert\.equal"):
            bs.load({"inputs": [str(model)], "transforms": [step]}).run(durable=False)
    write(model, whole)
    bs.load({"inputs": [str(model)], "transforms": [step]}).run(durable=False)
