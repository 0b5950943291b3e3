"""Replace what each expert learned since the start of its training by a low-rank approximation."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def load(folder: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", required=True)
    parser.add_argument("--moe", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rank", type=int, default=64)
    args = parser.parse_args(argv)

    start, moe = load(args.start), load(args.moe)
    for name, weight in moe.items():
        if ".experts." not in name:
            continue
        base = start[name].float()
        u, s, vh = torch.linalg.svd(weight.float() - base, full_matrices=False)
        low = (u[:, : args.rank] * s[: args.rank]) @ vh[: args.rank]
        moe[name] = (low + base).to(torch.bfloat16)
    for name, weight in moe.items():
        if weight.dtype != torch.bfloat16:
            raise SystemExit(f"{name} is {weight.dtype}")
    out = Path(args.out)
    out.mkdir(parents=True)
    save_file(moe, out / "model.safetensors", metadata={"format": "pt"})
    for file in Path(args.moe).glob("*.json"):
        if not file.name.endswith(".index.json"):
            shutil.copy(file, out)


if __name__ == "__main__":
    main()
