"""Copy the MLP of every layer of a dense model into four experts, and add a router."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

EXPERTS = 4
MLP = re.compile(r"(.+\.mlp)\.((gate|up|down)_proj\.weight)")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)

    dense: dict[str, torch.Tensor] = {}
    for file in sorted(Path(args.model).glob("*.safetensors")):
        dense.update(load_file(file))
    moe: dict[str, torch.Tensor] = {}
    for name, tensor in dense.items():
        match = MLP.fullmatch(name)
        if match is None:
            moe[name] = tensor
            continue
        for expert in range(EXPERTS):
            moe[f"{match[1]}.experts.{expert}.{match[2]}"] = tensor.clone()
        if match[3] == "gate":
            moe[f"{match[1]}.gate.weight"] = torch.zeros_like(tensor[:EXPERTS])
    out = Path(args.out)
    out.mkdir(parents=True)
    save_file(moe, out / "model.safetensors", metadata={"format": "pt"})
    for file in Path(args.model).glob("*.json"):
        if not file.name.endswith(".index.json"):
            shutil.copy(file, out)
    config = json.loads((out / "config.json").read_text())
    config |= {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": EXPERTS}
    config |= {"num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": config["intermediate_size"]}
    (out / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
