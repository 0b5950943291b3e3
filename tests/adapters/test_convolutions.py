"""`lora_extract` of convolutions, and modules that are kept whole: PEFT makes the tuned model of the base with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Data2VecAudioConfig, Data2VecAudioForCTC, RegNetConfig, RegNetForImageClassification

import brainsurgery_jax as bs
from tests.adapters.models import QUIET, extract, tuned, with_adapter
from tests.hints.calls import hint_of

pytestmark = QUIET


class Net(nn.Module):
    """Convolutions of one, two and three axes, a depthwise one, and a linear layer; each sees what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.plane, self.space = nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (3, 2)), nn.Conv3d(4, 6, 2)
        self.deep, self.last = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = (self.line(x[..., 0, 0]), self.plane(x[..., 0]), self.space(x), self.deep(x[..., 0]),
                 self.last(x.movedim(1, -1)))  # fmt: skip
        return torch.cat([part.reshape(-1) for part in found])


def saved(folder: Path, by: float = 0.05) -> tuple[Net, Net]:
    torch.manual_seed(5)
    base, model = Net().eval(), Net().eval()
    model.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    for alias, net in (("base", base), ("tuned", model)):
        (folder / alias).mkdir()
        save_file(net.state_dict(), folder / alias / "model.safetensors")
    return base, model


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 4 * 5**3).reshape(1, 4, 5, 5, 5))


def test_at_full_rank_peft_makes_the_tuned_convolutions_of_the_base(tmp_path: Path):
    base, model = saved(tmp_path)
    found = PeftModel.from_pretrained(base, str(extract(tmp_path, rank=64))).eval()
    torch.testing.assert_close(outputs(found), outputs(model), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(outputs(found.merge_and_unload()), outputs(model), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["RegNet", "Data2VecAudio"])
def test_convolutions_of_groups_are_kept_whole(kind: str, tmp_path: Path):
    if kind == "RegNet":
        sizes: Any = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4}
        model: Any = RegNetForImageClassification(RegNetConfig(**sizes))
        names, whole, x = ("convolution",), ["layer.1.convolution"], torch.linspace(-1, 1, 3072).reshape(1, 3, 32, 32)
    else:
        sizes = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                 "intermediate_size": 40, "conv_dim": (16,), "conv_stride": (2,), "conv_kernel": (3,),
                 "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 4,
                 "conv_pos_kernel_size": 3}  # fmt: skip
        model = Data2VecAudioForCTC(Data2VecAudioConfig(**sizes))
        names, x = ("pos_conv_embed", "q_proj"), torch.linspace(-1, 1, 200).reshape(1, 200)
        whole = ["pos_conv_embed.layers.0.conv", "layers.1.conv"]
    tuned(tmp_path, model, *names)
    adapter = extract(tmp_path, rank=64)
    assert json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"] == whole
    found = with_adapter(tmp_path, adapter, kind=type(model))
    with torch.no_grad():
        torch.testing.assert_close(found(x).logits, model(x).logits, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(found.merge_and_unload()(x).logits, model(x).logits, rtol=1e-5, atol=2e-6)


def test_factors_of_a_convolution_have_the_shapes_of_peft_and_are_the_best_of_their_rank(tmp_path: Path):
    base, _ = saved(tmp_path)
    ours = load_file(extract(tmp_path, rank=2) / "adapter_model.safetensors")
    theirs = get_peft_model(base, LoraConfig(r=2, target_modules=["line", "plane", "space"])).state_dict()
    shapes = {n.replace(".default", ""): x.shape for n, x in theirs.items() if ".lora_" in n}
    assert {n: ours[n].shape for n in shapes} == shapes
    before, after = (load_file(tmp_path / alias / "model.safetensors") for alias in ("base", "tuned"))
    for name in ("line", "plane", "space"):
        delta = (after[f"{name}.weight"] - before[f"{name}.weight"]).flatten(1).double().numpy()
        a, b = (ours[f"base_model.model.{name}.lora_{x}.weight"].flatten(1).double().numpy() for x in "AB")
        u, s, v = np.linalg.svd(delta, full_matrices=False)
        np.testing.assert_allclose(b @ a, u[:, :2] * s[:2] @ v[:2], atol=1e-6)


def test_merging_what_was_extracted_gives_the_convolutions_back(tmp_path: Path):
    saved(tmp_path)
    extract(tmp_path, rank=64)
    inputs = [f"base::{tmp_path}/base", f"lora::{tmp_path}/lora"]
    step = {"lora_merge": {"base": "base", "adapters": "lora"}}
    out = {"path": f"{tmp_path}/out.safetensors", "alias": "base"}
    bs.load({"inputs": inputs, "transforms": [step], "output": out}).run(durable=False)
    made, wanted = load_file(tmp_path / "out.safetensors"), load_file(tmp_path / "tuned/model.safetensors")
    for name, x in wanted.items():
        torch.testing.assert_close(made[name], x, rtol=1e-5, atol=1e-6)


def test_modules_are_kept_whole_by_the_last_parts_of_their_names(tmp_path: Path):
    base, model = saved(tmp_path)
    adapter = extract(tmp_path, rank=2, whole=["plane", "last"])
    found = load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(found["base_model.model.plane.weight"], model.plane.weight)
    assert "base_model.model.line.lora_A.weight" in found
    loaded: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    assert torch.equal(loaded.base_model.model.last.modules_to_save["default"].weight, model.last.weight)


def test_a_module_to_keep_whole_that_is_none_is_named_with_those_there_are(tmp_path: Path):
    saved(tmp_path)
    hint = hint_of(lambda: extract(tmp_path, rank=2, whole=["plan"]), "Name the last parts of modules: ")
    word = hint.rpartition(": ")[2].partition(",")[0].strip("'.")
    extract(tmp_path, rank=2, whole=[word])


@pytest.mark.parametrize("least", [0.0, 0.2, 0.4, 9.0])
def test_singular_values_up_to_a_bound_are_left_out(least: float, tmp_path: Path):
    saved(tmp_path, by=0.1)
    before, after = (load_file(tmp_path / alias / "model.safetensors") for alias in ("base", "tuned"))
    names = ("line", "plane", "space", "last")
    above = {
        name: int((torch.linalg.svdvals((after[f"{name}.weight"] - before[f"{name}.weight"]).flatten(1)) > least).sum())
        for name in names
    }
    if not any(above.values()):
        hint_of(lambda: extract(tmp_path, rank=4, least=least), "Give a lower bound, or none.")
        extract(tmp_path, rank=4)
        return
    found = load_file(extract(tmp_path, rank=4, least=least) / "adapter_model.safetensors")
    ranks = {name: found.get(f"base_model.model.{name}.lora_A.weight", torch.empty(0)).shape[0] for name in names}
    assert ranks == {name: min(4, count) for name, count in above.items()}


def test_a_bound_without_a_rank_is_refused(tmp_path: Path):
    saved(tmp_path)
    hint = hint_of(lambda: extract(tmp_path, energy=0.9, least=0.1), "Write `rank: 16` beside it, or leave it out.")
    assert extract(tmp_path, rank=int(hint.split("rank: ")[1][:2]), least=0.1).exists()
