"""`bs.fingerprint`: the fingerprint of a checkpoint by content, in one pass over every tensor."""

from __future__ import annotations

import os
from contextlib import ExitStack

from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.numerics.digest import CONTENT
from brainsurgery_jax.numerics.digest import fingerprint as join
from brainsurgery_jax.provenance.digests import digests_of


def fingerprint(path: str | os.PathLike[str] | Checkpoint, *, memory: int | str | None = None) -> str:
    """Compute the fingerprint of a checkpoint: of names, shapes, dtypes and every byte of its tensors.

    **Arguments**: `path` is that of a file or a folder, or what `bs.open` returns. `memory` is the budget, a number of
    bytes or a text such as "5GB" (default: a quarter of the available memory).
    **Returns** a BLAKE2b digest of 128 bits, such as `blake2b:6c5e...`: the same for every format and number of files.
    Metadata and side files do not count.
    **Raises** StoreError for what cannot be read, PlanError for a budget that is too small.
    **Example**:

    >>> bs.fingerprint("model.safetensors").partition(":")[0]
    'blake2b'
    """
    with ExitStack() as opened:
        chosen = open_side(path, opened, "fingerprint")
        inner = {chosen.prefix + name: name for name in chosen.avals}
        digests = digests_of(chosen.source, list(inner), CONTENT, default_budget(host_bytes=memory))
        return join((inner[name], str(chosen.avals[inner[name]]), digest) for name, digest in digests.items())
