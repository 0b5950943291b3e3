"""Two checkpoints, tensor by tensor."""

import sys

import torch
from _files import load

left, right = load(sys.argv[1]), load(sys.argv[2])
print(sorted(set(left) ^ set(right)), [n for n in left if n in right and not torch.equal(left[n], right[n])])
