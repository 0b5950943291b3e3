"""The NVIDIA devices of a machine, divided among the processes of a run before JAX has started any: a process takes
most of the memory of every device that it sees."""

from __future__ import annotations

import json
import os
import re

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.engine.compute.devices import HOST, Devices, may_be_found
from brainsurgery_jax.engine.run.budget import machine_identity
from brainsurgery_jax.engine.run.hosts import Hosts
from brainsurgery_jax.errors import StoreError

_DEVICE = re.compile(r"nvidia(\d+)")


def share_devices(hosts: Hosts, choice: Devices) -> None:
    """Hides the devices of the other processes of this machine, unless each was started with devices of its own, as
    launchers do. Raises StoreError if there are too few."""
    if hosts.count == 1:
        return
    own = visible_devices() if choice != HOST and may_be_found() else {}
    said = [
        json.loads(data) for data in hosts.gather("devices", json.dumps([machine_identity(), *own.values()]).encode())
    ]
    here, *names = said[hosts.number]
    rivals = [k for k, (machine, *others) in enumerate(said) if machine == here and not set(names).isdisjoint(others)]
    if len(rivals) < 2:
        return
    share = len(own) // len(rivals)
    if not share or any(said[k] != said[hosts.number] for k in rivals):
        problem = f"{len(rivals)} processes share {len(own)} accelerators of a machine, which cannot be divided"
        remedy = "Start fewer processes there, give each its own by CUDA_VISIBLE_DEVICES, or compute by --devices cpu."
        raise StoreError("--distributed", problem, remedy=remedy)
    first = rivals.index(hosts.number) * share
    jax.config.update("jax_cuda_visible_devices", ",".join(map(str, [*own][first : first + share])))


def visible_devices(folder: str = "/dev") -> dict[int, str]:
    """The devices that JAX would see, by its numbers, with their names: those of the system, or those that the
    environment names. `folder`: where the system shows them."""
    there = sorted(int(found[1]) for name in os.listdir(folder) if (found := _DEVICE.fullmatch(name)))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, there)) if named is None else [name for name in named.split(",") if name not in ("", "-1")]
    chosen = os.environ.get("JAX_CUDA_VISIBLE_DEVICES", "all")
    numbers = range(len(names)) if chosen == "all" else [int(number) for number in chosen.split(",")]
    return {number: names[number] for number in numbers if number < len(names)} if there else {}
