"""The plans that change what a model is made of, against what the models compute before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, GPT2Model, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.plans import models
from tests.plans.count_lines import plan_lines

PLANS = Path(__file__).resolve().parents[2] / "plans"
HEADS, WIDTH, EMBED = 12, 2, 24
PRUNED = (2, 5)


def run(name: str, **settings: Any) -> bs.Report:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    return bs.load(PLANS / f"{name}.yaml", **given).run(durable=False)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(models.TOKENS).logits


# --- Head pruning -----------------------------------------------------------------------------------------------------


def prune(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model, and its tensors after the plan."""
    model = models.narrow_gpt2()
    model.transformer.save_pretrained(folder / "model")
    run("head_pruning", model=folder / "model", out=folder / "out", width=WIDTH)
    return model, load_file(folder / "out/model.safetensors")


def silenced(model: Any) -> Any:
    """The model with what the pruned heads give to the residual stream set to zero."""
    for block in model.transformer.h:
        for head in PRUNED:
            block.attn.c_proj.weight.data[head * WIDTH : (head + 1) * WIDTH] = 0
    return model


def narrowed(model: Any) -> Any:
    """The model with attention for as many heads as are left, its weights still to be loaded."""
    left = (HEADS - len(PRUNED)) * WIDTH
    for block in model.transformer.h:
        block.attn.c_attn, block.attn.c_proj = Conv1D(3 * left, EMBED), Conv1D(EMBED, left)
        block.attn.split_size, block.attn.num_heads = left, HEADS - len(PRUNED)
    return model


def test_a_pruned_gpt2_computes_what_it_did_with_the_heads_silenced(tmp_path: Path) -> None:
    model, tensors = prune(tmp_path)
    wanted = logits(silenced(model))
    pruned = narrowed(model).eval()
    pruned.transformer.load_state_dict(tensors)
    torch.testing.assert_close(logits(pruned), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(wanted, logits(models.narrow_gpt2()), atol=1e-2)


def test_head_pruning_takes_rows_and_columns_out_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    model, tensors = prune(tmp_path)
    kept = [h * WIDTH + k for h in range(HEADS) if h not in PRUNED for k in range(WIDTH)]
    columns = [third * EMBED + c for third in range(3) for c in kept]
    for name, before in model.transformer.state_dict().items():
        pick = {"attn.c_attn.weight": (slice(None), columns), "attn.c_attn.bias": columns, "attn.c_proj.weight": kept}
        wanted = before[pick.get(name.partition("h.")[2].partition(".")[2], slice(None))]
        assert torch.equal(tensors[name], wanted), name


def test_head_pruning_takes_at_most_11_lines() -> None:
    assert plan_lines((PLANS / "head_pruning.yaml").read_text(encoding="utf-8")) <= 11


# --- Dropping layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [True, False], ids=["names of the hub", "names with a prefix"])
def test_a_model_without_layers_3_to_5_loads_and_computes_what_the_others_do(tmp_path: Path, bare: bool) -> None:
    model = models.narrow_gpt2()
    whole = model.transformer if bare else model
    whole.save_pretrained(tmp_path / "whole")
    run("drop_layers", model=tmp_path / "whole", out=tmp_path / "out")
    model.transformer.h = torch.nn.ModuleList([*model.transformer.h[:3], *model.transformer.h[6:]])
    found: Any = (GPT2Model if bare else GPT2LMHeadModel).from_pretrained(tmp_path / "out").eval()
    assert found.config.n_layer == len(found.h if bare else found.transformer.h) == 9
    with torch.no_grad():
        assert torch.equal(found(models.TOKENS)[0], whole(models.TOKENS)[0])


def test_the_rest_of_the_configuration_is_kept(tmp_path: Path) -> None:
    models.narrow_gpt2().save_pretrained(tmp_path / "whole")
    run("drop_layers", model=tmp_path / "whole", out=tmp_path / "out")
    before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("whole", "out"))
    assert after == before | {"n_layer": 9}


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_a_folded_adapter_gives_the_model_that_peft_merges(tmp_path: Path) -> None:
    base = models.adapted(tmp_path, torch.float32)
    run("lora_fold", base=base, adapter=tmp_path / "adapter", out=tmp_path / "out")
    peft = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter").merge_and_unload()
    found = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    for (name, ours), theirs in zip(found.state_dict().items(), peft.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)
    torch.testing.assert_close(logits(found.eval()), logits(peft.eval()), rtol=1e-4, atol=1e-4)


def test_a_fold_is_rounded_once_to_the_dtype_of_the_base(tmp_path: Path) -> None:
    base = models.adapted(tmp_path, torch.bfloat16)
    run("lora_fold", base=base, adapter=tmp_path / "adapter", out=tmp_path / "out")
    before, after, adapter = (load_file(f) for f in (
        base / "model.safetensors", tmp_path / "out/model.safetensors", tmp_path / "adapter/adapter_model.safetensors"
    ))  # fmt: skip
    for name, x in before.items():
        a, b = (adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{k}.weight") for k in "AB")
        exact = x.double() if a is None or b is None else x.double() + 2 * b.double() @ a.double()
        assert after[name].dtype == torch.bfloat16
        # half a unit in the last place, and what float32 may lose before it
        torch.testing.assert_close(after[name].double(), exact, rtol=2**-8 + 1e-5, atol=1e-5, msg=name)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    base = models.adapted(tmp_path, torch.float32)
    adapter = tmp_path / "adapter/adapter_model.safetensors"
    save_file({n.replace("layers.0", "layers.7"): t for n, t in load_file(adapter).items()}, adapter)
    with pytest.raises(
        PlanError, match=r"'base' has no module 'model\.layers\.7\.\S+' \(and 1 more\), which 'adapter' changes"
    ):
        run("lora_fold", base=base, adapter=tmp_path / "adapter", out=tmp_path / "out")


# --- Abliteration -----------------------------------------------------------------------------------------------------


def test_an_abliterated_model_writes_nothing_along_the_direction(tmp_path: Path) -> None:
    base, _ = models.llama_pair(tmp_path)
    direction = models.direction(tmp_path)
    run("abliteration", model=base, direction=direction, out=tmp_path / "out")
    r = load_file(direction)["r"]
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    unit = (r / r.norm()).double()
    for name, x in before.items():
        wide = x.double()
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            wide = wide - torch.outer(unit, unit @ wide)
        elif name == "model.embed_tokens.weight":
            wide = wide - torch.outer(wide @ unit, unit)
        torch.testing.assert_close(after[name].double(), wide, rtol=2**-8, atol=1e-6, msg=name)
        assert torch.equal(after[name], x) or wide is not x
