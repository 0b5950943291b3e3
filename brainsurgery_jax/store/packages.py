"""What the rows of the table of formats import when they are used: a function a package. Each gives a module, whose
functions are checked against `formats.Reading` and `formats.Writing` where the row names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import FileCounts, WriteOptions


def load_safetensors():
    """What reads and writes safetensors."""
    from brainsurgery_jax.store.safetensors import format

    return format


def cut_safetensors(avals: Mapping[str, Aval], options: WriteOptions) -> FileCounts:
    """Into how many files an output of safetensors is cut, and how many of them a source holds."""
    from brainsurgery_jax.store.safetensors.shards import cut_of

    return cut_of(avals, options)


def load_torch():
    """What reads and writes files of torch."""
    from brainsurgery_jax.store.torch import format

    return format


def load_peft():
    """What reads and writes adapters of PEFT."""
    from brainsurgery_jax.store import peft

    return peft


def load_delta():
    """What reads and writes deltas."""
    from brainsurgery_jax.store.delta import format

    return format


def load_dcp():
    """What reads and writes folders of `torch.distributed.checkpoint`."""
    from brainsurgery_jax.store.torch import dcp_format

    return dcp_format


def recognise_dcp(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is one of `torch.distributed.checkpoint`."""
    from brainsurgery_jax.store.torch.dcp import recognises

    return recognises(folder, names)


def load_npy():
    """What reads and writes files with one array of numpy."""
    from brainsurgery_jax.store.numpy import npy_format

    return npy_format


def load_npz():
    """What reads and writes archives of numpy."""
    from brainsurgery_jax.store.numpy import npz_format

    return npz_format


def load_orbax():
    """What reads and writes checkpoints of orbax."""
    from brainsurgery_jax.store.orbax import format

    return format


def held_by_orbax(avals: Mapping[str, Aval], options: WriteOptions) -> int:
    """The bytes that orbax holds while it writes an output."""
    from brainsurgery_jax.store.orbax.encode import held_bytes

    return held_bytes(avals, options)


def recognise_orbax(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is a checkpoint of orbax."""
    from brainsurgery_jax.store.orbax.folder import recognises

    return recognises(folder, names)


def load_flax():
    """What reads and writes files of flax."""
    from brainsurgery_jax.store.flax import format

    return format


def cut_flax(avals: Mapping[str, Aval], options: WriteOptions) -> FileCounts:
    """Into how many files an output of flax is cut."""
    from brainsurgery_jax.store.flax.layout import cut_flax

    return cut_flax(avals, options)


def begins_flax(head: bytes) -> bool:
    """Whether these bytes begin a map of msgpack with text for its first key, or an entry of a stream of EasyLM."""
    from brainsurgery_jax.store.flax.wire import begins_map, begins_pair

    return begins_map(head) or begins_pair(head)


def load_t5x():
    """What reads checkpoints of T5X."""
    from brainsurgery_jax.store.zarr_leaves import t5x

    return t5x


def recognise_t5x(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is a checkpoint of T5X."""
    from brainsurgery_jax.store.zarr_leaves.t5x import recognises

    return recognises(folder, names)


def load_zarr():
    """What reads folders of zarr arrays."""
    from brainsurgery_jax.store.zarr_leaves import pax

    return pax


def recognise_zarr(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it holds zarr arrays."""
    from brainsurgery_jax.store.zarr_leaves.pax import recognises

    return recognises(folder, names)


def load_equinox():
    """What reads and writes files of Equinox."""
    from brainsurgery_jax.store.equinox import format

    return format


def load_hdf5():
    """What reads and writes files of HDF5."""
    from brainsurgery_jax.store.hdf5 import format

    return format
