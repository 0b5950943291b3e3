"""`bs.fingerprint`: the fingerprint of a checkpoint by content, in one pass over every tensor."""

from __future__ import annotations

import os
from contextlib import ExitStack

from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.engine.compute.folds import question_of
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.numerics.digest import CONTENT
from brainsurgery_jax.numerics.digest import fingerprint as join


def fingerprint(path: str | os.PathLike[str] | Checkpoint, *, memory: int | None = None) -> str:
    """Compute the fingerprint of a checkpoint: of names, shapes, dtypes and every byte of its tensors.

    **Arguments**: `path` is that of a file or a folder, or what `bs.open` returns. `memory` is the budget in bytes
    (default: a quarter of the available memory).
    **Returns** a BLAKE2b digest of 128 bits, such as `blake2b:6c5e...`: the same for every format and number of files.
    Metadata and side files do not count.
    **Raises** StoreError for what cannot be read, PlanError for a budget that is too small.
    **Example**:

    >>> bs.fingerprint("model.safetensors").partition(":")[0]
    'blake2b'
    """
    with ExitStack() as opened:
        chosen = open_side(path, opened, "fingerprint")
        graph = Graph()
        leaves = {name: graph.leaf(chosen.source, chosen.prefix + name, aval) for name, aval in chosen.avals.items()}
        # A tensor without elements has the answer `empty`, and is not asked for.
        asked = {name: question_of((leaf,), CONTENT) for name, leaf in leaves.items() if leaf.aval.size}
        found = answers(list(asked.values()), default_budget(host_bytes=memory))
        chosen.source.verify_unchanged()
        digests = {name: found[asked[name]] if name in asked else CONTENT.empty for name in leaves}
        return join((name, str(leaves[name].aval), digest) for name, digest in digests.items())
