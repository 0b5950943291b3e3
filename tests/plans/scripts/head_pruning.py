"""Prune heads 2 and 5 of all layers of GPT-2 and check that nothing else changed."""

from __future__ import annotations

import argparse
import re

import torch
from safetensors.torch import load_file, save_file

HEADS, PRUNED = 12, (2, 5)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--embed", type=int, default=768)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args(argv)

    model = load_file(args.model)
    kept = [head for head in range(HEADS) if head not in PRUNED]
    layers = [name for name in model if re.fullmatch(r"h\.\d+\.attn\.c_attn\.weight", name)]
    if len(layers) != args.layers:
        raise SystemExit(f"expected {args.layers} layers, found {len(layers)}")
    pruned = {}
    for name, tensor in model.items():
        if re.fullmatch(r"h\.\d+\.attn\.c_attn\.weight", name):
            heads = tensor.reshape(args.embed, 3, HEADS, args.width)
            pruned[name] = heads[:, :, kept].reshape(args.embed, -1).contiguous()
        elif re.fullmatch(r"h\.\d+\.attn\.c_attn\.bias", name):
            pruned[name] = tensor.reshape(3, HEADS, args.width)[:, kept].reshape(-1).contiguous()
        elif re.fullmatch(r"h\.\d+\.attn\.c_proj\.weight", name):
            pruned[name] = tensor.reshape(HEADS, args.width, args.embed)[kept].reshape(-1, args.embed).contiguous()
        else:
            pruned[name] = tensor
    for name in layers:
        first = 2 * args.width
        if not torch.equal(model[name][:, :first], pruned[name][:, :first]):
            raise SystemExit(f"{name}: heads 0 and 1 have moved")
    save_file(pruned, args.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
