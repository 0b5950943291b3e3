"""Prune heads 2 and 5 of all layers of GPT-2 and check that nothing else changed."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HEADS, PRUNED = 12, (2, 5)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args(argv)

    source, target = Path(args.model), Path(args.out)
    model = load_file(source / "model.safetensors")
    kept = [head for head in range(HEADS) if head not in PRUNED]
    layers = [name for name in model if re.fullmatch(r"(.+\.)?h\.\d+\.attn\.c_attn\.weight", name)]
    if len(layers) != args.layers:
        raise SystemExit(f"expected {args.layers} layers, found {len(layers)}")
    pruned = {}
    for name, tensor in model.items():
        if re.fullmatch(r"(.+\.)?h\.\d+\.attn\.c_attn\.weight", name):
            heads = tensor.reshape(tensor.shape[0], 3, HEADS, args.width)
            pruned[name] = heads[:, :, kept].reshape(tensor.shape[0], -1).contiguous()
        elif re.fullmatch(r"(.+\.)?h\.\d+\.attn\.c_attn\.bias", name):
            pruned[name] = tensor.reshape(3, HEADS, args.width)[:, kept].reshape(-1).contiguous()
        elif re.fullmatch(r"(.+\.)?h\.\d+\.attn\.c_proj\.weight", name):
            pruned[name] = tensor.reshape(HEADS, args.width, -1)[kept].reshape(-1, tensor.shape[1]).contiguous()
        else:
            pruned[name] = tensor
    for name in layers:
        if not torch.equal(model[name][:, : args.width], pruned[name][:, : args.width]):
            raise SystemExit(f"{name}: head 0 has moved")
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    save_file(pruned, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
