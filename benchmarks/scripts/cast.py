"""Every tensor is converted."""

import sys

import torch
from _files import load, save

tensors = load(sys.argv[1])
save({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, sys.argv[2])
