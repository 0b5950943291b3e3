"""How long does `check` take on 20 steps that each match all of 20,000 tensors?

One process from its start to its exit, and its phases: importing, reading the plan, opening the checkpoint, lowering.
The checkpoint is a header and a hole. Goal: 2 s on one core of a small machine, without loading JAX.
Run: `python benchmarks/check_20k.py [tensors]`.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE, DTYPE, WIDTH = (64, 64), "BF16", 2
STEPS = r"""
  - copy: {from: 'model\.(.*)', to: 'c.\1'}
  - move: {from: 'c\.(.*)', to: 'd.\1'}
  - scale_: {target: 'model\..*', by: 0.5}
  - assert: {dtype: {of: 'model\..*', is: bfloat16}}
  - cast_: {target: 'd\..*', to: float32}
  - delete: {target: 'd\..*'}
  - add_: {from: 'model\.(.*)', to: 'model.\1'}
  - scale: {from: 'model\.(.*)', to: 'e.\1', by: 3}
  - clamp_: {target: 'e\..*', min: -1, max: 1}
  - assert: {shape: {of: 'e\..*', is: [64, 64]}}
  - permute: {from: 'e\.(.*)', to: 'f.\1', order: [1, 0]}
  - delete: {target: 'e\..*'}
  - move: {from: 'f\.(.*)', to: 'g.\1'}
  - reshape_: {target: 'g\..*', shape: [-1]}
  - assert: {dimensions: {of: 'g\..*', is: 1}}
  - delete: {target: 'g\..*'}
  - cast_: {target: 'model\..*', to: float32}
  - subtract_: {from: 'model\.(.*)', to: 'model.\1'}
  - move: {from: 'model\.(.*)', to: 'm.\1'}
  - assert: {count: {of: '.*', is: TENSORS}}
"""
PHASES = """
import json, time
start = time.perf_counter()
import brainsurgery_jax as bs
from brainsurgery_jax.lower import lower, start as begin
from brainsurgery_jax.world import Files
imported = time.perf_counter()
plan = bs.load("plan.yaml")
loaded = time.perf_counter()
files = Files(provisional=True)
state = begin(plan.data, files)
opened = time.perf_counter()
program = lower(state, plan.data, files)
lowered = time.perf_counter()
assert not program.diagnostics, program.diagnostics
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported, "open_s": opened - loaded,
                  "lower_s": lowered - opened}))
"""


def make(folder: Path, tensors: int) -> None:
    """A checkpoint of equal matrices in ten to a layer, and the plan."""
    size = SHAPE[0] * SHAPE[1] * WIDTH
    header = {
        f"model.layers.{i // 10}.block.{i % 10}.weight": {
            "dtype": DTYPE, "shape": SHAPE, "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(tensors)
    }  # fmt: skip
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + tensors * size)
    steps = STEPS.replace("TENSORS", str(tensors))
    (folder / "plan.yaml").write_text(f"inputs: [m::model.safetensors]\ntransforms:{steps}output: out.safetensors\n")


def python(code: str, folder: Path) -> str:
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def main() -> None:
    tensors = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, tensors)
        before, start = os.times(), time.perf_counter()
        python("import brainsurgery_jax as bs; bs.load('plan.yaml').check()", folder)
        wall, after = time.perf_counter() - start, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        phases = {k: round(v, 3) for k, v in json.loads(python(PHASES, folder)).items()}
    facts = {"benchmark": "check_20k", "tensors": tensors, "steps": STEPS.count("\n  - "), "cores": os.cpu_count()}
    print(json.dumps({**facts, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3), **phases}))


if __name__ == "__main__":
    main()
