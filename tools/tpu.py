"""Compile every kernel that accelerators may compute for TPUs, without one: `make tpu`.

Each program is compiled as the engine does, as a batch over all devices of a topology. It prints a table of compile
times, memory, operations and bytes, writes it to a file if one is named, and fails for what takes too long or more
memory than the engine projects.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from jax.experimental import topologies

import brainsurgery_jax.api  # noqa: F401  (all ops are loaded)
from brainsurgery_jax.engine.compute.kernels import exact
from brainsurgery_jax.engine.plan.footprint import on_device
from tools.device_kernels import Program, example_calls, programs

TOPOLOGIES = "v5e:2x2", "v5e:4x8"
LONGEST = 60.0
"""Seconds of processor time that a program may take to compile. What takes longer is compiled once more: on a busy
machine the same work takes up to half as much again."""


class Compiled(NamedTuple):
    """A program for one device of a topology: what the compiler says of it, and what the engine projects."""

    program: Program
    seconds: float
    needs: int
    projected: int
    flops: float
    moved: float

    @property
    def faults(self) -> list[str]:
        late = [f"compiles in {self.seconds:.0f} s"] if self.seconds > LONGEST else []
        large = [f"needs {self.needs} bytes, projected {self.projected}"] if self.needs > self.projected else []
        return [f"{self.program.name} of {self.program.operands}: {fault}" for fault in late + large]


def main() -> int:
    """Compile for all topologies. Returns an exit status."""
    tables, faults = [], []
    for name in TOPOLOGIES:
        with exact():
            made = list(compile_all(name))
        tables.append(table(name, made))
        faults += [fault for one in made for fault in one.faults]
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(HEAD + "\n" + "\n".join(tables), encoding="utf-8")
    print("\n".join(faults or ["all compile within 60 s and within the projected memory"]))
    return bool(faults)


def compile_all(topology: str) -> Iterator[Compiled]:
    """Compile all programs for a topology, one call for each device."""
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = jax.sharding.Mesh(np.array(described.devices), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    for call in example_calls():
        for program in programs(call, "tpu"):
            one = compile_batch(program, len(described.devices), sharding)
            if one.seconds > LONGEST:
                again = compile_batch(program, len(described.devices), sharding)
                one = min(one, again, key=lambda compiled: compiled.seconds)
            print(f"{topology} {program.name} {program.operands}: {one.seconds:.1f} s", flush=True)
            yield one


def compile_batch(program: Program, count: int, sharding: jax.sharding.Sharding) -> Compiled:
    """Compile a program as a batch with one call for each of `count` devices."""

    def outline(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=sharding)

    begun = time.process_time()
    compiled = jax.jit(jax.vmap(program.function)).lower(*jax.tree.map(outline, program.arguments)).compile()
    seconds = time.process_time() - begun
    told, cost = compiled.memory_analysis(), compiled.cost_analysis()
    assert told is not None and cost is not None
    needs = told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes
    flops, moved = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    return Compiled(program, seconds, needs, on_device(program.call), flops, moved)


HEAD = f"""# Kernels on accelerators

Written by `make tpu` (`tools/tpu.py`), which compiles every kernel that accelerators may compute with the TPU compiler
of jax {jax.__version__}, without a TPU. Each program is a batch with one call for each device. All figures are for one
device and one call: memory as the compiler tells it and as the engine projects it; operations and bytes moved as the
compiler counts them, which takes the body of a loop once.

While a device computes, other threads read and send the operands of the next calls (`tests/engine/test_overlap.py`).
Transfers to NVIDIA GPUs are pinned by XLA: it copies what `jax.device_put` sends into page-locked memory, on a thread
of its own, and the device fetches it from there (`should_stage_host_to_device_transfers`, on by default; newer versions
leave it out from 1 GiB on). So readers fill ordinary memory. An array that is pinned before
(`memory_kind="pinned_host"`) is pinned by the same copy, since nothing can be read into it.

On CPUs with AMX, Gram matrices of bfloat16 take its products: see [performance.md](performance.md).
"""


def table(topology: str, made: list[Compiled]) -> str:
    """A table in Markdown of what was compiled for a topology."""
    rows = [
        f"| {one.program.name} | {one.program.operands} | {one.seconds:.1f} | {one.needs / 1e6:.1f} | "
        f"{one.projected / 1e6:.1f} | {one.flops / 1e9:.2f} | {one.moved / 1e9:.3f} |"
        for one in made
    ]
    columns = "kernel", "operands", "compiled, CPU s", "memory, MB", "projected, MB", "GFLOP", "GB moved"
    head = f"| {' | '.join(columns)} |\n|---|---|---:|---:|---:|---:|---:|"
    return f"## {topology}\n\n{head}\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
