"""Undo a prefix rewrite in memory and report every difference from the original."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    args = parser.parse_args(argv)

    before, after = load_file(args.before), load_file(args.after)
    if not torch.equal(after.pop("lm_head.weight"), after["transformer.wte.weight"]):
        raise SystemExit("the head is not tied to the embedding")
    after = {name.removeprefix("transformer."): tensor for name, tensor in after.items()}

    differing = []
    for name in sorted(before.keys() & after.keys()):
        left, right = before[name], after[name]
        if left.shape != right.shape:
            differing.append(f"{name}: shapes {list(left.shape)} and {list(right.shape)}")
        elif left.dtype != right.dtype:
            differing.append(f"{name}: dtypes {left.dtype} and {right.dtype}")
        elif not torch.equal(left, right):
            differing.append(f"{name}: values")
    findings = {
        "missing before": sorted(after.keys() - before.keys()),
        "missing after": sorted(before.keys() - after.keys()),
        "differing": differing,
    }
    for title, names in findings.items():
        print(f"{title}:")
        for name in names or ["none"]:
            print(f"  - {name}")
    if any(findings.values()):
        raise SystemExit("the checkpoints differ")


if __name__ == "__main__":
    main()
