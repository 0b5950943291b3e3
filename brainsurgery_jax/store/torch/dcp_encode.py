"""Writing folders of `torch.distributed.checkpoint` from memory maps. The extra `[torch]`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from brainsurgery_jax.errors import cause_of
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.torch.encode import contents

if TYPE_CHECKING:
    import numpy as np


def encode_dcp(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes the state dict to a folder that is there already, as one process does."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import StorageMeta
    from torch.distributed.checkpoint.state_dict_saver import save

    class AnonymousWriter(FileSystemWriter):
        """Without the path of the partial output and the random ids that torch would note in the metadata."""

        def storage_meta(self) -> StorageMeta:
            return StorageMeta()

    writer = AnonymousWriter(path, sync_files=False)  # flushed with all else at the end, if that is wanted
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)  # torch 2.9 warns of itself
        try:
            save(contents(arrays, options), storage_writer=writer, no_dist=True)
        except CheckpointException as error:  # of whatever was raised within, Ctrl-C too
            raise cause_of(next(failure for failure, _ in error.failures.values())) from error
