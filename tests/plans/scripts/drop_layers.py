"""Drop layers 3, 4 and 5 of GPT-2 and renumber those behind them."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

LAYER = re.compile(r"((?:.+\.)?h)\.(\d+)\.(.+)")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=9)
    args = parser.parse_args(argv)

    source, target = Path(args.model), Path(args.out)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        found = LAYER.fullmatch(name)
        if found is None:
            tensors[name] = tensor
            continue
        head, number, tail = found[1], int(found[2]), found[3]
        if number < 3:
            tensors[name] = tensor
        elif number > 5:
            tensors[f"{head}.{number - 3}.{tail}"] = tensor
    layers = sum(1 for name in tensors if name.endswith(".ln_1.weight"))
    if layers != args.layers:
        raise SystemExit(f"expected {args.layers} layers, found {layers}")
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text())
    config["n_layer"] = args.layers
    (target / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
