"""Folders of PEFT: read as adapters, written so that PEFT loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import bits, counting, write

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "nested": {"a": 1, "b": 2}}
NAME = "base_model.model.layers.0.q_proj.lora_A.weight"


def adapter(folder: Path, *, suffix: str = "safetensors") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    if suffix == "bin":
        torch.save({NAME: torch.arange(6.0).reshape(2, 3)}, folder / "adapter_model.bin")
    else:
        write(folder / "adapter_model.safetensors", {NAME: counting((2, 3))})
    return folder


def converted(source: Path, target: Path, steps: tuple[Any, ...] = (), **output: object) -> Path:
    bs.load({"inputs": [str(source)], "transforms": [*steps], "output": {"path": str(target)} | output}).run(
        durable=False
    )
    return target


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_adapter_is_read_with_its_config(tmp_path: Path, suffix: str) -> None:
    checkpoint = bs.open(str(adapter(tmp_path / "a", suffix=suffix)))
    assert bits(checkpoint[NAME]) == bits(counting((2, 3)))
    assert json.loads(checkpoint.metadata["peft.adapter_config"]) == CONFIG


def test_an_adapter_is_written_as_it_was(tmp_path: Path) -> None:
    source = adapter(tmp_path / "a")
    target = converted(source, tmp_path / "b", format="peft")
    assert sorted(p.name for p in target.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "brainsurgery.lock.json",
    ]  # fmt: skip
    assert json.loads((target / "adapter_config.json").read_text()) == CONFIG
    assert bits(bs.open(str(target))[NAME]) == bits(counting((2, 3)))
    assert (target / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_config_survives_another_format(tmp_path: Path) -> None:
    through = converted(adapter(tmp_path / "a"), tmp_path / "m.npz")
    target = converted(through, tmp_path / "b", format="peft")
    assert json.loads((target / "adapter_config.json").read_text()) == CONFIG
    header = safetensors.safe_open(str(target / "adapter_model.safetensors"), "np").metadata()
    assert header == {"format": "pt"}


def test_options_change_the_config_at_every_depth(tmp_path: Path) -> None:
    options = {"config": {"r": 8, "nested": {"b": 3}}}
    target = converted(adapter(tmp_path / "a"), tmp_path / "b", format="peft", options=options)
    found = json.loads((target / "adapter_config.json").read_text())
    assert found == CONFIG | {"r": 8, "nested": {"a": 1, "b": 3}}


def test_an_option_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"option 'config': expected a mapping, got 3"):
        converted(adapter(tmp_path / "a"), tmp_path / "b", format="peft", options={"config": 3})


@pytest.mark.parametrize(("output", "names"), [({}, []), ({"config": {"made_by": "me"}}, ["config.json"])])
def test_an_adapter_of_a_base_gets_the_config_of_the_base_only_on_request(
    tmp_path: Path, output: dict[str, Any], names: list[str]
) -> None:
    (base := tmp_path / "base").mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32"}))
    write(base / "model.safetensors", {"w": counting((6, 6)), "v": counting((2,))})
    factors = {"A": "base_model.model.w.lora_A.weight", "B": "base_model.model.w.lora_B.weight"}
    steps = (
        {"phlora": {"target": "w", "rank": 2, "target_a": factors["A"], "target_b": factors["B"]}},
        {"delete": {"target": "w|v"}},
    )
    target = converted(base, tmp_path / "lora", steps, format="peft", options={"config": {"lora_alpha": 2}}, **output)
    assert sorted(p.name for p in target.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "brainsurgery.lock.json", *names,
    ]  # fmt: skip


def test_peft_loads_what_is_written(tmp_path: Path) -> None:
    import peft

    def base() -> transformers.LlamaForCausalLM:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)

    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    lora = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base(), lora).save_pretrained(str(tmp_path / "a"))
    step = {"scale_": {"target": r".*lora_B.*", "by": 2}}
    target = converted(tmp_path / "a", tmp_path / "b", (step,), format="peft")
    added = [_added(peft.PeftModel.from_pretrained(base(), path), base()) for path in (tmp_path / "a", target)]
    assert added[0].abs().max() > 0
    torch.testing.assert_close(added[1], 2 * added[0])


def _added(model: Any, base: Any) -> torch.Tensor:
    """What an adapter adds to the weight that it targets."""
    merged = model.merge_and_unload().model.layers[0].self_attn.q_proj.weight
    return (merged - base.model.layers[0].self_attn.q_proj.weight).detach()
