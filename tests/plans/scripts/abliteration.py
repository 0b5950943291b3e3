"""Remove one direction from all that a Llama-like model writes into its residual stream."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--direction", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--left", type=float, default=1e-2)
    args = parser.parse_args(argv)

    source, target = Path(args.model), Path(args.out)
    model = load_file(source / "model.safetensors")
    r = load_file(args.direction)["r"].float()
    r = r / r.norm()
    for name, tensor in model.items():
        wide = tensor.float()
        if name.endswith((".o_proj.weight", ".down_proj.weight")):
            model[name] = (wide - torch.outer(r, r @ wide)).to(tensor.dtype)
            left = (r @ model[name].float()).abs().max()
            if left > args.left:
                raise SystemExit(f"{name}: {left} is left along the direction")
        elif name == "model.embed_tokens.weight":
            model[name] = (wide - torch.outer(wide @ r, r)).to(tensor.dtype)
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    save_file(model, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
