"""The fine-tuned delta of matrices is replaced by its best low-rank approximation, by the full SVD, and cast."""

import re
import sys

import torch
from _files import load, save

RANK = 64
base, tuned = load(sys.argv[1]), load(sys.argv[2])
dtype, matrices = getattr(torch, sys.argv[3]), re.compile(sys.argv[4])
for name, tensor in tuned.items():
    if tensor.ndim == 2 and matrices.fullmatch(name):
        before = base[name].float()
        u, s, vh = torch.linalg.svd(tensor.float() - before, full_matrices=False)
        tuned[name] = before + (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
save({name: tensor.to(dtype) for name, tensor in tuned.items()}, sys.argv[5])
