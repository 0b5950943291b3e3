"""Factorize what fine-tuning changed into a LoRA adapter, with the config that PEFT needs."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def load(path: str) -> dict[str, torch.Tensor]:
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(load_file(file))
    return tensors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args(argv)

    base, tuned = load(args.base), load(args.tuned)
    if base.keys() != tuned.keys():
        raise SystemExit(f"the models have other tensors: {sorted(base.keys() ^ tuned.keys())[0]}")
    adapter: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    whole: set[str] = set()
    for name, weight in tuned.items():
        if weight.shape != base[name].shape:
            raise SystemExit(f"{name}: the base model has another shape")
        if torch.equal(weight, base[name]):
            continue
        module = name.removesuffix(".weight")
        if weight.dim() != 2:
            adapter[f"base_model.model.{name}"] = weight
            whole.add(re.sub(r".*\.\d+\.", "", module))
            continue
        delta = weight.float() - base[name].float()
        table = module.endswith("embed_tokens")
        u, s, vh = torch.linalg.svd(delta.T if table else delta, full_matrices=False)
        rank = min(args.rank, len(s))
        root = s[:rank].sqrt()
        ends = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        adapter[f"base_model.model.{module}.{ends[0]}"] = (root[:, None] * vh[:rank]).contiguous()
        adapter[f"base_model.model.{module}.{ends[1]}"] = (u[:, :rank] * root).contiguous()
        ranks[module] = rank
    pattern = {module: rank for module, rank in ranks.items() if rank != args.rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": args.base,
        "r": args.rank,
        "lora_alpha": args.rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(ranks),
        "modules_to_save": sorted(whole),
    }
    Path(args.out).mkdir()
    save_file(adapter, Path(args.out) / "adapter_model.safetensors", metadata={"format": "pt"})
    (Path(args.out) / "adapter_config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
