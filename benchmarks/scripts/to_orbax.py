"""A folder of safetensors files saved by orbax, as scripts do: the whole checkpoint in memory."""

import sys
from pathlib import Path

import orbax.checkpoint as ocp
from safetensors.numpy import load_file

tree: dict = {}
for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    for name, array in load_file(file).items():
        *parents, last = name.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = array
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[2], tree)
