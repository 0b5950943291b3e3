"""Two checkpoints, tensor by tensor, within a tolerance."""

import sys

import torch
from _files import load

EPS = 1e-3
left, right = load(sys.argv[1]), load(sys.argv[2])
print(sorted(set(left) ^ set(right)))
for name in sorted(set(left) & set(right)):
    if left[name].shape != right[name].shape or left[name].dtype != right[name].dtype:
        print(name, "differs in shape or dtype")
    elif (worst := torch.max(torch.abs(left[name].double() - right[name].double())).item()) > EPS:
        print(name, worst)
