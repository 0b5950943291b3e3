"""Arrays of a running program as a checkpoint, so that they are written like one."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.index.boxes import Box, box_shape, whole
from brainsurgery_jax.store.base import Fingerprint, Header, TensorInfo, fingerprint_of
from brainsurgery_jax.store.io.arrays import empty_aligned, numpy_dtype
from brainsurgery_jax.store.key_tree import NO_TREE, KeyTree

if TYPE_CHECKING:
    import numpy as np


class MemorySource:
    """Arrays of numpy or JAX by name; see `base.Source`. Those of JAX come to the host as a whole to be read."""

    def __init__(
        self,
        path: str,
        arrays: Mapping[str, Any],
        avals: Mapping[str, Aval],
        metadata: Mapping[str, str],
        tree: KeyTree = NO_TREE,
    ):
        infos = {name: TensorInfo(aval, 0, 0) for name, aval in avals.items()}
        self.header = Header(path, (), infos, metadata, tree=tree)
        self._arrays = arrays
        self._lock = Lock()
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Tensor bytes taken so far."""
        return self._bytes_read

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        import numpy as np

        box = whole(self.header.tensors[name].aval.shape) if box is None else box
        result = empty_aligned(box_shape(box), self._dtype(name))
        result[...] = np.asarray(self._arrays[name])[tuple(slice(*span) for span in box)]
        self._count(result.nbytes)
        return result

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        import numpy as np

        result = empty_aligned((stop - start,), self._dtype(name))
        result[...] = np.asarray(self._arrays[name]).reshape(-1)[start:stop]
        self._count(result.nbytes)
        return result

    def _dtype(self, name: str) -> np.dtype:
        return numpy_dtype(self.header.tensors[name].aval.dtype, path=self.header.path, tensor=name)

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._bytes_read += nbytes

    def file_run(self, name: str, start: int, stop: int) -> None:
        """None: there is no file."""

    @property
    def fingerprint(self) -> Fingerprint:
        """A digest of names and avals: values in memory have no stamp."""
        return fingerprint_of(self.header, {})

    def verify_unchanged(self) -> None:
        """Arrays are not looked at again: whoever gave them does not change them meanwhile."""

    def close(self) -> None:
        """Lets go of the arrays."""
        self._arrays = {}
