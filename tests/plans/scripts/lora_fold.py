"""Fold a LoRA adapter into its base model."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)

    source, target = Path(args.base), Path(args.out)
    base = load_file(source / "model.safetensors")
    adapter = load_file(Path(args.adapter) / "adapter_model.safetensors")
    config = json.loads((Path(args.adapter) / "adapter_config.json").read_text())
    for key in ("alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out"):
        if config.get(key):
            raise SystemExit(f"{key} is {config[key]}")
    if config.get("init_lora_weights") not in (True, False, "gaussian", None):
        raise SystemExit(f"init_lora_weights is {config['init_lora_weights']}")
    used = set()
    for name, a in adapter.items():
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        b = adapter[f"{stem}.lora_B.weight"]
        weight = f"{stem.removeprefix('base_model.model.')}.weight"
        old = base[weight]
        base[weight] = (old.float() + config["lora_alpha"] / len(a) * b.float() @ a.float()).to(old.dtype)
        used |= {name, f"{stem}.lora_B.weight"}
    if left := sorted(adapter.keys() - used):
        raise SystemExit(f"{left[0]} is not used")
    for name, tensor in base.items():
        if not torch.isfinite(tensor).all():
            raise SystemExit(f"{name} is not finite")
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    save_file(base, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
