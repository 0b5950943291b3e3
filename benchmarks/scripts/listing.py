"""The names, shapes and dtypes of a checkpoint file; nobody loads torch for that."""

import sys

from safetensors import safe_open

with safe_open(sys.argv[1], "np") as file:
    for name in file.keys():  # noqa: SIM118  (the file is no mapping)
        tensor = file.get_slice(name)
        print(name, tensor.get_shape(), tensor.get_dtype())
