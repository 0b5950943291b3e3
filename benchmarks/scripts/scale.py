"""One family of weights is scaled."""

import sys

from _files import load, save

tensors = load(sys.argv[1])
for name, tensor in tensors.items():
    if ".mlp." in name:
        tensor *= 0.5
save(tensors, sys.argv[2])
