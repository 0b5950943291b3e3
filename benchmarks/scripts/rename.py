"""Every tensor gets another prefix."""

import sys

from _files import load, save

tensors = load(sys.argv[1])
save({name.replace("model.", "transformer.", 1): tensor for name, tensor in tensors.items()}, sys.argv[2])
