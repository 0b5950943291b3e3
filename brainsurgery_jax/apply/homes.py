"""Where arrays live, and how they are sent there and fetched: explicitly, so that JAX's transfer guards allow it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

from brainsurgery_jax._lazy import AbstractMesh, Array, Mesh, Sharding, jax, np
from brainsurgery_jax.apply.meshes import sharding_of
from brainsurgery_jax.graph.expr import Expr, walk


class Home(NamedTuple):
    """Where a call is computed: a sharding on its devices, whether it was chosen, and the mesh if it names one."""

    sharding: Sharding
    committed: bool
    mesh: Mesh | AbstractMesh | None

    @property
    def everywhere(self) -> Sharding | None:
        """A copy of all of an array on each device; None for the default device."""
        return _everywhere(self)

    @property
    def platform(self) -> str:
        """What its devices are, as JAX calls it."""
        return next(iter(self.sharding.device_set)).platform

    @property
    def is_explicit(self) -> bool:
        """Whether its mesh has axes that are part of the types of arrays."""
        return self.mesh is not None and bool(self.mesh.abstract_mesh.explicit_axes)

    @property
    def context(self) -> AbstractContextManager[object]:
        """The context of its mesh, whatever the caller's."""
        return nullcontext() if self.mesh is None else jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


@lru_cache(maxsize=256)
def _everywhere(home: Home) -> Sharding | None:
    if not home.committed:
        return None
    if home.mesh is not None:
        return sharding_of(home.mesh, ())
    devices = sorted(home.sharding.device_set, key=lambda d: d.id)
    if len(devices) == 1:
        return jax.sharding.SingleDeviceSharding(devices[0])
    return sharding_of(jax.sharding.Mesh(np.array(devices), ("devices",)), ())


def home_of(operands: Sequence[object]) -> Home:
    """The place of the operand on the most devices, the first of several; of none but numpy arrays the default one."""
    arrays = [x for x in operands if isinstance(x, jax.Array)]
    chosen = [x for x in arrays if x.committed or is_placed(x)]
    if not arrays:
        return Home(jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), committed=False, mesh=None)
    widest = max(chosen or arrays, key=lambda x: x.sharding.num_devices)
    return Home(widest.sharding, widest.committed, mesh_of(widest.sharding))


def mesh_of(sharding: Sharding) -> Mesh | AbstractMesh | None:
    """The mesh of a named sharding; None for any other."""
    return sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None


def is_placed(leaf: object) -> bool:
    """Whether a leaf is an array that the host does not hold: on accelerators, on several devices, or pinned."""
    if not isinstance(leaf, jax.Array):
        return False
    device = next(iter(leaf.sharding.device_set))
    there = leaf.sharding.num_devices == 1 and device.platform == "cpu" and device.process_index == jax.process_index()
    return not (there and leaf.sharding.memory_kind in (None, device.default_memory().kind))


def placed_nodes(roots: Iterable[Expr], given: Mapping[Expr, object]) -> frozenset[Expr]:
    """The nodes that devices compute: those made of a leaf that lives there, and of dtypes that only JAX knows."""
    found: set[Expr] = set()
    for e in walk(roots):
        mine = is_placed(given[e]) if e.is_given else any(s in found for s in e.srcs)
        if mine or e.aval.dtype.numpy is None:
            found.add(e)
    return frozenset(found)


def can_reach(array: jax.Array, home: Home) -> bool:
    """Whether this process can send an array to the devices of a home."""
    same = array.sharding.device_set == home.sharding.device_set
    return same or not is_placed(array) or (array.is_fully_addressable and home.sharding.is_fully_addressable)


def bring(x: Array, home: Home) -> jax.Array:
    """An operand on the devices of a home, in their own memory; the same array if it is there."""
    if not isinstance(x, jax.Array):
        return send(x, home.everywhere)
    own = x.sharding
    there = own.device_set == home.sharding.device_set
    if there and mesh_of(own) == home.mesh:
        kind = next(iter(own.device_set)).default_memory().kind
        return x if own.memory_kind in (None, kind) else jax.device_put(x, own.with_memory_kind(kind))
    named = isinstance(own, jax.sharding.NamedSharding)
    if there and home.mesh is not None and named and own.mesh.shape == home.mesh.shape:
        return jax.device_put(x, jax.sharding.NamedSharding(home.mesh, own.spec))
    if not there and not home.sharding.is_fully_addressable:  # of which each process has some devices
        return send(x, home.everywhere)
    return jax.device_put(x, home.everywhere)


def send(array: Array | np.generic, sharding: Sharding | None) -> jax.Array:
    """A numpy array on devices: a copy, of which each process sends the part that its own devices have."""
    # Copied here: from JAX 0.12 on, `may_alias=False` shares the memory of some numpy arrays all the same.
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(np.array(array), sharding)
    array = np.asarray(array)
    parts = sharding.addressable_devices_indices_map(array.shape)
    placed = [jax.device_put(np.array(array[index]), device) for device, index in parts.items()]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, placed)


def can_fetch(array: Array) -> bool:
    """Whether this process can see all of an array."""
    return not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated


def fetch(array: Array) -> np.ndarray:
    """An array on the host. One that spans processes must be replicated: then each of them has a copy."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = array.addressable_data(0)
    return jax.device_get(array)


def duplicate(value: Array) -> jax.Array:
    """An array of its own with the same values, at the same place."""
    if not isinstance(value, jax.Array):
        return send(value, None)
    place = value.sharding if value.committed or is_placed(value) else None
    return jax.device_put(value, place, may_alias=False)
