"""Rename the tensors of a bare GPT-2 to those of GPT2LMHeadModel, and add its head."""

from __future__ import annotations

import argparse

from safetensors.torch import load_file, save_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)

    model = load_file(args.model)
    if any(name.startswith("transformer.") for name in model):
        raise SystemExit("the prefix is there already")
    renamed = {f"transformer.{name}": tensor for name, tensor in model.items()}
    renamed["lm_head.weight"] = renamed["transformer.wte.weight"].clone()
    if any(name.startswith("h.") for name in renamed):
        raise SystemExit("a layer kept its old name")
    save_file(renamed, args.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
