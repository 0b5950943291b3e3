"""How fast, and in how much memory, are checkpoints of JAX programs converted?

A file of flax (msgpack) and a folder of zarr arrays, of 2 GB each, to safetensors; and safetensors to msgpack. One JSON
line for each: seconds, bytes a second, and the peak of anonymous memory over that of `check`, which opens the same
checkpoint and reads no tensor. Beside it, `cp` of the same checkpoint. Run it alone:
`python benchmarks/jax_formats.py`; `BENCH_SMALL=1` uses 64 MB. The rate is that of the whole command, and also without
what `check` takes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts
from _checkpoints import DATA, SMALL, nbytes
from _measure import measure, say

ROWS = 64 if SMALL else 2048
TENSORS = 32
WIDTH = 8192
COMMAND = (sys.executable, "-m", "brainsurgery_jax")


def arrays() -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of random bits, 64 MB each."""
    rng = np.random.default_rng(0)
    for number in range(TENSORS):
        yield f"params.layers_{number}.kernel", rng.integers(0, 1 << 32, (ROWS, WIDTH), np.uint32).view(np.float32)


def put_zarr(folder: Path) -> Path:
    """A folder of zarr arrays without compression, cut into chunks of 256 rows."""
    for name, array in arrays():
        place = {"driver": "file", "path": f"{folder}/{name}/"}
        metadata = {"compressor": None, "chunks": [min(256, ROWS), WIDTH]}
        spec = {"driver": "zarr", "kvstore": place, "metadata": metadata}
        ts.open(spec, create=True, dtype="float32", shape=array.shape).result().write(array).result()
    return folder


def put_safetensors(path: Path) -> Path:
    """One file of safetensors."""
    from safetensors.numpy import save_file

    save_file(dict(arrays()), path)
    return path


def put_msgpack(path: Path, source: Path) -> Path:
    """The same as a file of flax."""
    measure((*COMMAND, "convert", str(source), str(path)))
    return path


def report(what: str, source: Path, destination: Path) -> None:
    """Convert once to warm the cache of the system, once to measure."""
    plan = destination.parent / "plan.yaml"
    plan.write_text(f"inputs: ['{source}']\noutput: {{path: '{destination}', overwrite: true}}\n")
    before = measure((*COMMAND, "check", str(plan)))
    run = (*COMMAND, "run", "--quiet", "--no-fsync", str(plan))
    measure(run)
    found = measure(run)
    copied = measure(("cp", "-r", str(source), str(destination.parent / "copy")))
    shutil.rmtree(destination.parent / "copy", ignore_errors=True)
    (destination.parent / "copy").unlink(missing_ok=True)
    size = nbytes(source)
    say(
        what=what, bytes=size, seconds=round(found.wall, 2), gb_per_second=round(size / found.wall / 1e9, 2),
        gb_per_second_after_start=round(size / max(found.wall - before.wall, 0.01) / 1e9, 2),
        cpu_seconds=round(found.cpu - before.cpu, 2), start_seconds=round(before.wall, 2),
        copy_seconds=round(copied.wall, 2),
        peak_over_start_mb=round((found.anonymous - before.anonymous) / 1e6),
    )  # fmt: skip


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as place:
        folder = Path(place)
        plain = put_safetensors(folder / "plain.safetensors")
        packed = put_msgpack(folder / "packed.msgpack", plain)
        report("msgpack to safetensors", packed, folder / "out.safetensors")
        report("safetensors to msgpack", plain, folder / "out.msgpack")
        packed.unlink()
        plain.unlink()
        report("zarr leaves to safetensors", put_zarr(folder / "zarr"), folder / "out.safetensors")
