"""An orbax checkpoint saved as a safetensors file, as scripts do: the whole checkpoint in memory."""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(Path(sys.argv[1], "state"))
leaves = jax.tree_util.tree_leaves_with_path(tree)
tensors = {".".join(str(entry.key) for entry in path): np.asarray(leaf) for path, leaf in leaves}
Path(sys.argv[2]).mkdir()
save_file(tensors, Path(sys.argv[2], "model.safetensors"), {"format": "pt"})
