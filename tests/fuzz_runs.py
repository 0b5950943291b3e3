"""Runs random plans that `check` finds right, on checkpoints of random bits: a run ends well, or with a clear refusal.

    python -m tests.fuzz_runs --seconds 300 --seed 1

Of each random plan those steps are kept after which it is still right. A run may then stop at a failed assert, at
values that an op refuses, or at what the operating system says; anything else is a failure, and saved under `--save`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from brainsurgery_jax import api
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.lower import lower, start
from tests.fuzz_plans import TooSlow, time_limit
from tests.fuzz_values import FILES, Maker
from tests.null.world import Headers, aval, write_zeros


def write_files(random: Random) -> None:
    """The checkpoints that plans read, here, with random bits."""
    for name, tensors in FILES.items():
        path = Path(name) if name.endswith(".safetensors") else Path(name, "model.safetensors")
        path.parent.mkdir(exist_ok=True)
        write_zeros(path, tensors)
        nbytes = path.stat().st_size
        bits = b"".join(random_bits(random, text) for text in tensors.values())
        with path.open("r+b") as file:
            file.seek(nbytes - len(bits))
            file.write(bits)


def random_bits(random: Random, text: str) -> bytes:
    """The bytes of a tensor: any at all, but those of booleans are 0 or 1."""
    made = random.randbytes(aval(text).nbytes)
    return bytes(byte & 1 for byte in made) if text.startswith("bool") else made


def right_plan(random: Random, world: Headers) -> dict[str, Any] | None:
    """A random plan without a mistake that changes, says or asserts something, or None."""
    plan = Maker(random, 0.0).plan()
    wanted, kept = plan.pop("transforms"), []
    plan |= {"output": None, "vars": {}}
    for step in wanted:
        if is_right({**plan, "transforms": [*kept, step]}, world):
            kept.append(step)
    output = {"path": "out.safetensors", "alias": "m", "overwrite": True}
    return {**plan, "transforms": kept, "output": output} if kept else None


def is_right(plan: dict[str, Any], world: Headers) -> bool:
    world.graph = Graph()
    try:
        loaded = api.load(plan)
    except PlanError:
        return False
    lowered = lower(start(loaded.data, world), loaded.data, world)
    return not loaded.problems and not lowered.diagnostics


def outcome(plan: dict[str, Any]) -> str:
    """What came of a run: "ran", or what it was refused for."""
    try:
        with time_limit(60):
            api.load(plan).run()
    except PlanError as error:
        return error.diagnostics[0].code
    except StoreError:
        return "store"
    return "ran"


def clear() -> None:
    """Removes what runs have written here."""
    for name in set(os.listdir()) - set(FILES):
        (shutil.rmtree if os.path.isdir(name) else os.unlink)(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_runs", description="Run random plans.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    save, until = options.save.absolute(), monotonic() + options.seconds
    seen, ops, world, number = Counter[str](), Counter[str](), Headers(FILES), options.first
    warnings.simplefilter("ignore")  # numpy's, of NaN and infinities
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_files(Random(options.seed))
        while monotonic() < until:
            number += 1
            plan = right_plan(Random(f"{options.seed}:{number}"), world)
            if plan is None:
                continue
            clear()
            try:
                seen[outcome(plan)] += 1
                ops.update(step if isinstance(step, str) else next(iter(step)) for step in plan["transforms"])
            except (Exception, TooSlow) as error:  # whatever comes out is what is looked for
                seen["failure"] += 1
                save.mkdir(parents=True, exist_ok=True)
                text = json.dumps(plan, indent=1) + "\n\n" + traceback.format_exc()
                (save / f"run-{options.seed}-{number}.txt").write_text(text, encoding="utf-8")
                print(f"case {number}: {error!r}"[:200], flush=True)
        os.chdir("/")
    print(f"{seen.total()} runs of cases {options.first} to {number}: {dict(seen.most_common())}")
    print(f"{ops.total()} steps: {dict(ops.most_common())}")
    return 1 if seen["failure"] else 0


if __name__ == "__main__":
    sys.exit(main())
