"""A tree that is cut over 8 devices, written by `save` and restored by orbax strictly: what each array is cut as."""

from __future__ import annotations

import json
import os
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import brainsurgery_jax as bs

SPECS = {"same": P("data", "model"), "other": P(None, "data"), "whole": P()}
"""What is asked of orbax, by the name of a leaf; all are written from `same`."""

if __name__ == "__main__":
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    tree = {name: jax.device_put(values, NamedSharding(mesh, SPECS["same"])) for name in SPECS}
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/tree"
        bs.save(path, tree, format="orbax", options={"version": "v0"}, durable=False)
        wanted = {
            name: jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, spec))
            for name, spec in SPECS.items()
        }
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(path, wanted, strict=True)
    equal = all(np.array_equal(np.asarray(x), values) for x in found.values())
    shards = {name: [list(shard.data.shape) for shard in x.addressable_shards] for name, x in found.items()}
    print(json.dumps({"equal": equal, "shards": {name: [len(s), s[0]] for name, s in shards.items()}}))
