"""Operands of calls on whole operands, as readers: each device gets its part directly from the store.

The host never holds an operand whole unless it computes there: each part for a device is read, sent, and dropped
before the next part is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from brainsurgery_jax._lazy import Array, jax, np
from brainsurgery_jax.engine.compute.devices import JaxDevice
from brainsurgery_jax.engine.plan.segments import LIMIT, cut
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.index.boxes import Box, box_shape
from brainsurgery_jax.store.io.arrays import numpy_dtype


class WholeReader(Protocol):
    """Reads tensors of the graph, whole and in boxes."""

    def whole(self, e: Expr) -> Array: ...

    def box(self, e: Expr, box: Box) -> Array: ...


class ArrayReader:
    """Reads a tensor that is already in memory."""

    def __init__(self, array: Array):
        self._array = array

    def whole(self, e: Expr) -> Array:
        return self._array

    def box(self, e: Expr, box: Box) -> Array:
        return self._array[key_of_box(box)]


class Operand(NamedTuple):
    """An operand of a call, read on demand, whole or in boxes."""

    expr: Expr
    reader: WholeReader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.expr.aval.shape

    @property
    def dtype(self) -> np.dtype:
        return numpy_dtype(self.expr.aval.dtype)

    def read(self) -> Array:
        """All of it."""
        return self.reader.whole(self.expr)

    def read_box(self, box: Box) -> Array:
        """Read a box without steps. Computed operands are computed in boxes of at most `LIMIT` bytes."""
        if self.expr.is_leaf:
            return self.expr.source.read(self.expr.name, box)
        out = np.empty(box_shape(box), self.dtype)
        for part in cut(box, max(1, LIMIT // self.dtype.itemsize), 0):
            at = tuple(slice(first - low, end - low) for (first, end, _), (low, _, _) in zip(part, box, strict=True))
            out[at] = self.reader.box(self.expr, part)
        return out


def key_of_box(box: Box) -> tuple[slice, ...]:
    """A box as the key of an array."""
    return tuple(slice(*span) for span in box)


def read_in_turn(operands: Sequence[Operand]) -> Iterator[Array]:
    """Read all operands in turn. An operand that occurs twice is read once, and held between."""
    left, held = Counter(operands), dict[Operand, Array]()
    for operand in operands:
        array = held.pop(operand) if operand in held else operand.read()
        left[operand] -= 1
        if left[operand]:
            held[operand] = array
        yield array


def send(operands: Sequence[Operand], device: JaxDevice) -> list[jax.Array]:
    """Send operands to one device, one by one."""
    return [_send_part(array, device) for array in read_in_turn(operands)]


def send_sharded(operands: Sequence[Operand], shardings: Mapping[Operand, jax.sharding.Sharding]) -> list[jax.Array]:
    """Send operands to several devices, each its part, one by one."""
    sent: dict[Operand, list[list[jax.Array]]] = {}
    for operand, times in Counter(operands).items():
        sent[operand] = [[] for _ in range(times)]
        for box, devices in _places(operand, shardings[operand]).items():
            part = operand.read_box(box)
            for copy in sent[operand]:
                copy.extend(_send_part(part, device) for device in devices)
            del part
    return [
        jax.make_array_from_single_device_arrays(operand.shape, shardings[operand], sent[operand].pop())
        for operand in operands
    ]


def _places(operand: Operand, sharding: jax.sharding.Sharding) -> dict[Box, list[JaxDevice]]:
    """The boxes of an operand, and the devices that get each."""
    places: dict[Box, list[JaxDevice]] = {}
    for device, key in sharding.addressable_devices_indices_map(operand.shape).items():
        assert key is not None
        box = tuple(at.indices(n) for at, n in zip(key, operand.shape, strict=True))
        places.setdefault(box, []).append(device)
    return places


def send_batch(members: Sequence[Operand], sharding: jax.sharding.Sharding) -> jax.Array:
    """Send the operands of several calls as one array with a leading axis, which is sharded over the devices in their
    order. The host holds the share of one device at a time."""
    shape, arrays = (len(members), *members[0].shape), read_in_turn(members)
    shares = []
    for device, key in sharding.addressable_devices_indices_map(shape).items():
        assert key is not None
        share = np.empty((len(members[key[0]]), *shape[1:]), members[0].dtype)
        for at in range(len(share)):
            share[at] = next(arrays)
        shares.append(_send_part(share, device))
        del share
    return jax.make_array_from_single_device_arrays(shape, sharding, shares)


def _send_part(array: Array, device: JaxDevice) -> jax.Array:
    """Send an array to a device and wait: until it has arrived, the host must hold it."""
    return jax.block_until_ready(jax.device_put(array, device))
