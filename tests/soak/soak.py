"""Random plans in one process for a long time, alone and several at a time, under a limit of memory.

    python -m tests.soak.soak --minutes 20 --memory 3000

Each round makes as many plans as run at a time (1, 2, 4, and again), runs each alone, and then all of them at once, in
threads. Their outputs must have the bits of the single runs. After each round the memory, the descriptors and the
threads of the process are noted: they may not grow. What is printed are tables. Exit status 1 if a bit differed, a run
failed, or something grew.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import brainsurgery_jax as bs
from tests.checkpoints import normal, write
from tests.fuzz_plans import limit_memory

AT_A_TIME = (1, 2, 4)
PLANS = 60
"""Random plans that are run, again and again."""

FORMATS = ("a.safetensors", "a.pt", "a.npz", "a.msgpack", "folder/")

Step = Callable[[Random, str], dict[str, Any]]
STEPS: Sequence[Step] = (
    lambda r, n: {"scale_": {"target": f"m.{r.randrange(3)}", "by": r.uniform(0.5, 2)}},
    lambda r, n: {"add_": {"from": "m.0", "to": "m.1"}},
    lambda r, n: {"matmul": {"from_a": f"m.{r.randrange(3)}", "from_b": "t", "to": n}},
    lambda r, n: {"copy": {"from": f"m.{r.randrange(3)}", "to": n}},
    lambda r, n: {"cast": {"from": "m.1", "to": n, "dtype": r.choice(("bfloat16", "float16", "float64"))}},
    lambda r, n: {"permute": {"from": "m.2", "to": n, "order": [1, 0]}},
    lambda r, n: {"reduce": {"from": "e", "to": n, "mode": r.choice(("mean", "sum", "norm")), "dim": r.randrange(2)}},
    lambda r, n: {"phlora_": {"target": f"m.{r.randrange(3)}", "rank": r.randint(2, 9)}},
    lambda r, n: {"clamp_": {"target": "e", "min": -r.random(), "max": r.random()}},
    lambda r, n: {"rand": {"target": n, "shape": [r.randint(1, 99)], "distribution": "normal", "seed": 3}},
    lambda r, n: {"compute": {"from": {"w": "m.0"}, "to": n, "expr": "tanh(w) * sum(w ** 2) / max(abs(w))"}},
    lambda r, n: {"lerp_": {"from": "m.0", "to": "m.2", "t": r.random()}},
    lambda r, n: {"assert": {"exists": "m.0"}},
    lambda r, n: {"dump": {"target": "e", "verbosity": "stat"}},
)  # fmt: skip


def prepare(place: Path) -> None:
    """The checkpoint that all plans read: of a few blocks, so that sums are cut."""
    tensors = {f"m.{i}": normal((96, 64), seed=i) for i in range(3)}
    tensors |= {"t": normal((64, 80), seed=9), "e": normal((1200, 1100), ml_dtypes.bfloat16, seed=10)}
    write(place / "in.safetensors", tensors)


def plan_of(place: Path, seed: int, number: int) -> dict[str, Any]:
    """A random plan, by the seed and its number alone; it writes to a place of its own."""
    random = Random(f"soak {seed}:{number}")
    steps = [random.choice(STEPS)(random, f"n.{i}") for i in range(random.randint(1, 8))]
    path = place / f"{number}" / random.choice(FORMATS)
    output = {"path": f"{path}{'/' if path.name == 'folder' else ''}"}
    return {"inputs": [f"m::{place / 'in.safetensors'}"], "transforms": steps, "output": output}


def run(plan: dict[str, Any]) -> str:
    """Run a plan; a digest of what it wrote. The output is removed."""
    path = Path(plan["output"]["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    bs.load(plan).run(durable=False, memory=256 << 20)
    digest = hashlib.sha256()
    found = bs.open(str(path))
    for name in sorted(found):
        array = np.asarray(found[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    shutil.rmtree(path.parent)
    return digest.hexdigest()


def apart(plans: Sequence[dict[str, Any]]) -> list[str]:
    """The digests of plans that run at the same time."""
    ready = threading.Barrier(len(plans))

    def one(plan: dict[str, Any]) -> str:
        ready.wait()
        return run(plan)

    with ThreadPoolExecutor(len(plans)) as threads:
        return list(threads.map(one, plans))


class Held(NamedTuple):
    """What the process holds: MiB of memory that are not shared with files, descriptors, threads."""

    memory: float
    descriptors: int
    threads: int


def use_one_arena() -> None:
    """Makes glibc serve all threads from one pool of memory, before there are any. Of several pools each keeps what was
    freed in it, up to 64 MiB at its end, so that the process seems to hold more the more threads have come and gone."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(-8, 1)  # M_ARENA_MAX of malloc.h


def held() -> Held:
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)  # what is free is not held
    resident, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
    mebibytes = (resident - shared) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return Held(round(mebibytes, 1), len(os.listdir("/proc/self/fd")), threading.active_count())


class Round(NamedTuple):
    """A round: how many plans ran at a time, how many had other bits than alone, what the process held then."""

    at_a_time: int
    different: int
    held: Held


def rounds(place: Path, seed: int) -> Iterator[Round]:
    """Rounds without an end. The plans come again, in turn: what was compiled for them is kept."""
    numbers = cycle(range(PLANS))
    for number in count():
        at_a_time = AT_A_TIME[number % len(AT_A_TIME)]
        plans = [plan_of(place, seed, next(numbers)) for _ in range(at_a_time)]
        alone = [run(plan) for plan in plans]
        yield Round(at_a_time, sum(a != b for a, b in zip(alone, apart(plans), strict=True)), held())


GROWTH_MIB = 16.0
"""How much more memory the last fifth of the rounds may hold than the second fifth: kernels of plans that came late."""


def growth(found: Sequence[Round]) -> Held:
    """What the last fifth of the rounds holds more than the second, by their medians: in the first, code is loaded and
    compiled."""
    fifth = max(1, len(found) // 5)
    early, late = found[fifth : 2 * fifth] or found[:1], found[-fifth:]
    more = [median(r.held[i] for r in late) - median(r.held[i] for r in early) for i in range(3)]
    return Held(round(more[0], 1), int(more[1]), int(more[2]))


def tell(found: Sequence[Round], seconds: float) -> bool:
    """Print what was found; whether all of it is well."""
    print("| runs at a time | plans | with other bits than alone |\n|---:|---:|---:|")
    for n in AT_A_TIME:
        those = [r for r in found if r.at_a_time == n]
        print(f"| {n} | {n * len(those)} | {sum(r.different for r in those)} |")
    print(f"\n{len(found)} rounds in {seconds / 60:.0f} minutes.\n")
    print("| after | memory, MiB | descriptors | threads |\n|---|---:|---:|---:|")
    for part in range(0, 11):
        at = min(len(found) - 1, part * len(found) // 10)
        now = found[at].held
        print(f"| round {at + 1} | {now.memory:.0f} | {now.descriptors} | {now.threads} |")
    more = growth(found)
    print(f"\ngrowth: {more.memory} MiB, {more.descriptors} descriptors, {more.threads} threads")
    return not any(r.different for r in found) and more.memory <= GROWTH_MIB and more[1:] <= (0, 0)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--memory", type=int, default=3000, help="MiB of address space beyond that in use at the start")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(given)
    found: list[Round] = []
    use_one_arena()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        run(plan_of(place, options.seed, 0))  # what is loaded once takes address space
        limit_memory(options.memory)
        begun = monotonic()
        for each in rounds(place, options.seed):
            found.append(each)
            if monotonic() - begun > 60 * options.minutes:
                break
        return 0 if tell(found, monotonic() - begun) else 1


if __name__ == "__main__":
    sys.exit(main())
