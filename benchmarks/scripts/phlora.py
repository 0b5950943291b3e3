"""Low-rank factors of every matrix, by the full SVD."""

import sys

import torch
from _files import load, save

RANK = 16
tensors = load(sys.argv[1])
out = {}
for name, tensor in tensors.items():
    if tensor.ndim != 2:
        out[name] = tensor
        continue
    u, s, vh = torch.linalg.svd(tensor, full_matrices=False)
    root = s[:RANK].sqrt()
    stem = name.removesuffix(".weight")
    out[stem + ".lora_A"] = root[:, None] * vh[:RANK]
    out[stem + ".lora_B"] = u[:, :RANK] * root
save(out, sys.argv[2])
