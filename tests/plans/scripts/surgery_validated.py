"""Switch off one attention head of GPT-2 and check that nothing else changed."""

from __future__ import annotations

import argparse
import re

import torch
from safetensors.torch import load_file, save_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--first", type=int, default=64)
    parser.add_argument("--last", type=int, default=128)
    args = parser.parse_args(argv)

    model = load_file(args.model)
    before = {name: tensor.clone() for name, tensor in model.items()}
    projections = [name for name in model if re.fullmatch(r"h\.\d+\.attn\.c_proj\.weight", name)]
    if len(projections) != args.layers:
        raise SystemExit(f"expected {args.layers} layers, found {len(projections)}")
    for name in projections:
        if model[name].dim() != 2:
            raise SystemExit(f"{name} is not a matrix")
        width = args.last - args.first
        if model[name].shape[0] != args.heads * width or args.first % width:
            raise SystemExit(f"{name}: rows {args.first} to {args.last} are not one of {args.heads} heads")
    edited = f"h.{args.layer}.attn.c_proj.weight"
    if not model[edited][args.first : args.last, :].any():
        raise SystemExit(f"{edited}: the head is zero already")

    model[edited][args.first : args.last, :] = 0

    if model[edited][args.first : args.last, :].any():
        raise SystemExit(f"{edited}: the head is not zero")
    if not torch.equal(model[edited][: args.first, :], before[edited][: args.first, :]):
        raise SystemExit(f"{edited}: rows before the head changed")
    if not torch.equal(model[edited][args.last :, :], before[edited][args.last :, :]):
        raise SystemExit(f"{edited}: rows behind the head changed")
    for name, tensor in model.items():
        if name != edited and not torch.equal(tensor, before[name]):
            raise SystemExit(f"{name} changed")
    save_file(model, args.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
