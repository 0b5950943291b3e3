"""Factorize the difference of a fine-tuned model from its base into a LoRA adapter."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PROJECTION = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj)\.weight")


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
    adapter: dict[str, torch.Tensor] = {}
    for name, weight in tuned.items():
        match = PROJECTION.fullmatch(name)
        if match is None:
            continue
        if name not in base or base[name].shape != weight.shape:
            raise SystemExit(f"{name}: the base model has no such matrix")
        delta = weight.float() - base[name].float()
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        rank = min(args.rank, len(s))
        root = s[:rank].sqrt()
        key = f"base_model.model.{match[1]}"
        adapter[f"{key}.lora_A.weight"] = (root[:, None] * vh[:rank]).contiguous()
        adapter[f"{key}.lora_B.weight"] = (u[:, :rank] * root).contiguous()
    save_file(adapter, args.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
