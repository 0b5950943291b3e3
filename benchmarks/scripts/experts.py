"""A dense model becomes a mixture of four experts that start as copies."""

import re
import sys

from _files import load, save

tensors = load(sys.argv[1])
out = {}
for name, tensor in tensors.items():
    if ".mlp." in name:
        for expert in range(4):
            out[re.sub(r"\.mlp\.", f".mlp.experts.{expert}.", name)] = tensor.clone()
    else:
        out[name] = tensor
save(out, sys.argv[2])
