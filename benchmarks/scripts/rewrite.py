"""The fine-tuned delta of every matrix is replaced by its best low-rank approximation, by the full SVD, and cast."""

import sys

import torch
from _files import load, save

RANK = 64
base, tuned = load(sys.argv[1]), load(sys.argv[2])
for name, tensor in tuned.items():
    if tensor.ndim == 2:
        u, s, vh = torch.linalg.svd(tensor - base[name], full_matrices=False)
        tuned[name] = base[name] + (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
save({name: tensor.to(torch.bfloat16) for name, tensor in tuned.items()}, sys.argv[3])
