"""Double the values of every attention layer of GPT-2 and halve its output projection."""

from __future__ import annotations

import argparse
import re

from safetensors.torch import load_file, save_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)

    model = load_file(args.model)
    for name, tensor in model.items():
        if re.fullmatch(r"h\.\d+\.attn\.c_attn\.weight", name):
            tensor[:, tensor.shape[1] // 3 * 2 :] *= 2
        elif re.fullmatch(r"h\.\d+\.attn\.c_attn\.bias", name):
            tensor[tensor.shape[0] // 3 * 2 :] *= 2
        elif re.fullmatch(r"h\.\d+\.attn\.c_proj\.weight", name):
            tensor *= 0.5
    save_file(model, args.out, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
