"""How does a run scale over processes and devices, what does the loss of a process do, and what would a pod take?

    python benchmarks/hosts.py scale        1 to 4 processes and 1 to 8 simulated devices: bytes, balance, memory
    python benchmarks/hosts.py kill [N]     one process is killed at N moments (20): nothing published, resume completes
    python benchmarks/hosts.py model        the model of a run beside measured runs, on this machine
    python benchmarks/hosts.py page         the tables of docs/hosts.md: 405B dense and 671B mixture, 1 to 256 hosts

Processes are real, on loopback; devices are those that XLA shows when it is told to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _checkpoints import dense, mixture
from _measure import Watch
from safetensors.numpy import save_file

import brainsurgery_jax as bs
from brainsurgery_jax import api
from brainsurgery_jax.engine.plan.planner import plan_work
from brainsurgery_jax.engine.plan.simulate import ClusterModel, simulate
from brainsurgery_jax.engine.plan.work import Machine, WorkItem
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.world import Elsewhere

PAGE = Path(__file__).parents[1] / "docs" / "hosts.md"
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PJRT_NPROC": "1", "TF_CPP_MIN_LOG_LEVEL": "1"}
STEPS = [
    {"assert": {"finite": r"h\..*"}},
    {"scale_": {"target": r"h\..*\.w|more.*", "by": 0.5}},
    {"move": {"from": r"(h\..*)b", "to": r"\1bias"}},
    {"compute": {"from": {"x": "emb"}, "expr": "x / sqrt(sum(x ** 2))"}},
    {"phlora_": {"target": r"h\.\d\.w", "rank": 16}},
]
ONE_ON_DEVICES = """
import sys, jax, brainsurgery_jax as bs
from brainsurgery_jax.engine.compute.devices import Accelerators
own = Accelerators(jax.local_devices()[: int(sys.argv[2])], 1 << 30)
bs.run(bs.load(sys.argv[1]), devices=own, overwrite=True, durable=False)
"""


PROCESSORS = 8
"""Processors that processes see where memory is measured, however many there are: each would use as many threads."""

SEEN = f"""
import os
os.sched_getaffinity = lambda pid: set(range({PROCESSORS}))
from brainsurgery_jax.cli.app import main
main()
"""


class Ended(NamedTuple):
    """Exit codes, seconds in all, and the most bytes of anonymous memory of each process (mapped files and libraries,
    which processes share, are not counted)."""

    codes: tuple[int, ...]
    seconds: float
    peaks: tuple[int, ...]


def write_plan(folder: Path, megabytes: int = 72) -> Path:
    """A model with a tensor of so many megabytes, and a plan with questions, streams, copies, a fold and calls on whole
    operands. Another process makes them: the peak of a child counts what its parent held."""
    subprocess.run([sys.executable, __file__, "make", str(folder), str(megabytes)], check=True)
    return folder / "plan.yaml"


def make(folder: Path, megabytes: int) -> None:
    """Write the model and the plan."""
    draw = np.random.default_rng(0)
    tensors = {f"h.{n}.w": draw.standard_normal((512, 512), np.float32) for n in range(24)}
    tensors |= {f"more.{n}": draw.standard_normal((1024, 1024), np.float32) for n in range(48)}
    tensors |= {f"h.{n}.b": draw.standard_normal(4096, np.float32) for n in range(24)}
    tensors["emb"] = draw.standard_normal((megabytes << 8, 1024), np.float32)
    save_file(tensors, folder / "m.safetensors")
    output = {"path": str(folder / "out"), "shard": "8MB"}
    plan = {"inputs": [f"m::{folder / 'm.safetensors'}"], "transforms": STEPS, "output": output}
    (folder / "plan.yaml").write_text(json.dumps(plan))


def start(plan: Path, processes: int, *more: str) -> list[subprocess.Popen[bytes]]:
    """The processes of a run, on a machine with a budget of 1 GB and `PROCESSORS`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    line = [sys.executable, "-c", SEEN, "run", str(plan), "--no-fsync", "--memory", "1GB", "-q", *more]
    parts = [["--distributed", "--coordinator", f"127.0.0.1:{port}", "--process-id", str(k),
              "--process-count", str(processes)] for k in range(processes)]  # fmt: skip
    return [
        subprocess.Popen([*line, *(part if processes > 1 else [])], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        for part in parts
    ]


def end(started: Sequence[subprocess.Popen[bytes]], since: float) -> Ended:
    """Wait for processes."""
    codes = list[int]()
    with ExitStack() as stack:
        watches = [stack.enter_context(Watch(process.pid, alone=True)) for process in started]
        for process in started:
            codes.append(process.wait())
    return Ended(tuple(codes), time.monotonic() - since, tuple(watch.peak for watch in watches))


def run(plan: Path, processes: int, *more: str) -> Ended:
    """One run."""
    since = time.monotonic()
    return end(start(plan, processes, *more), since)


def digest(folder: Path) -> str:
    """Of the names and bytes of all files."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


# --- Scaling and loss -------------------------------------------------------------------------------------------------


def scale(folder: Path) -> Iterable[str]:
    """The table of processes and devices."""
    plan = write_plan(folder)
    items = api.explain(bs.load(str(plan))).items
    yield "| processes | devices each | bytes | largest part of the outputs / mean | peak memory, largest process | s |"
    yield "|---:|---:|---|---:|---:|---:|"
    for processes in (1, 2, 3, 4):
        ended = run(plan, processes, "--overwrite")
        assert not any(ended.codes), ended
        balance = simulate(items, ClusterModel(processes, Machine(1 << 30, PROCESSORS))).phases[-1].imbalance
        cells = f"{digest(folder / 'out')} | {balance:.3f} | {show_size(max(ended.peaks))} | {ended.seconds:.1f}"
        yield f"| {processes} | host | {cells} |"
    for devices in (1, 2, 4, 8):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        since, line = time.monotonic(), [sys.executable, "-c", ONE_ON_DEVICES, str(plan), str(devices)]
        ended = end([subprocess.Popen(line, env=ENVIRONMENT | flags)], since)
        cells = f"{digest(folder / 'out')} | 1.000 | {show_size(max(ended.peaks))} | {ended.seconds:.1f}"
        yield f"| 1 | {devices} | {cells} |"


def kill(folder: Path, moments: int) -> Iterable[str]:
    """What the loss of a process does at moments that are spread over a run by what its journals note, so that no other
    load moves them: from the first output file on, since one that is lost before all have found each other is waited
    for."""
    plan = write_plan(folder, 32)
    started = start(plan, 2, "--overwrite", "--resume")
    whole = watch_journals(folder, started, 1 << 62)
    assert not any(end(started, 0).codes)
    wanted = digest(folder / "out")
    yield "| killed | after | exit of the other | published | resumed with | same bytes |"
    yield "|---|---:|---:|---|---:|---|"
    for number in range(moments):
        shutil.rmtree(folder / "out", ignore_errors=True)
        share, victim = number / moments, number % 2
        started = start(plan, 2, "--resume", "--lost-after", "3")
        watch_journals(folder, started, round(whole * share))
        started[victim].send_signal(signal.SIGKILL)
        codes = end(started, 0).codes
        published = (folder / "out").exists()
        again = (1, 3)[number % 4 // 2]
        resumed = run(plan, again, "--resume", "--overwrite")
        same = not any(resumed.codes) and digest(folder / "out") == wanted
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        told = "yes, whole" if published else "no"
        end_of_it = "yes" if same and not left else f"no: {left}"
        yield f"| {victim} | {share:.0%} | {codes[1 - victim]} | {told} | {again} | {end_of_it} |"


def watch_journals(folder: Path, started: Sequence[subprocess.Popen[bytes]], until: int) -> int:
    """Wait for the first output file and for so many bytes of journals, or for the end of the processes. The bytes that
    were there."""
    most = 0
    while any(process.poll() is None for process in started):
        names = [path for path in folder.iterdir() if path.name.startswith(".")]
        for_all = 0
        for path in names:
            with suppress(FileNotFoundError):
                for_all += path.stat().st_size if ".journal" in path.name else 0
        most = max(most, for_all)
        if names and most >= until:
            break
        time.sleep(0.002)
    return most


# --- The model --------------------------------------------------------------------------------------------------------


def model(folder: Path) -> Iterable[str]:
    """What the model says of runs here, calibrated by runs of one process, beside what they take."""
    write_plan(folder, 384)
    yield "| plan | processes | modelled, s | measured, s | modelled peak | measured peak above the process itself |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, step in {
        "copy": {"move": {"from": "(.*)", "to": r"n.\1"}},
        "scale": {"scale_": {"target": ".*", "by": 2}},
    }.items():
        path, tiny = folder / f"{name}.yaml", folder / "tiny.yaml"
        text = {"inputs": [f"m::{folder / 'm.safetensors'}"], "transforms": [step]}
        path.write_text(json.dumps({**text, "output": {"path": str(folder / "out"), "shard": "64MB"}}))
        few = [{"delete": {"target": "emb|.*w|more.*"}}, step]
        tiny.write_text(json.dumps({**text, "transforms": few, "output": str(folder / "tiny.safetensors")}))
        items = api.explain(bs.load(str(path)), Elsewhere(overwrite=True)).items
        nbytes = sum(item.reads + item.writes for item in items)
        first, base = run(path, 1, "--overwrite"), run(tiny, 1, "--overwrite")
        rate = nbytes / 2 / max(0.05, first.seconds - base.seconds)
        for processes in (1, 2):
            base, ended = run(tiny, processes, "--overwrite"), run(path, processes, "--overwrite")
            disk = rate * 1.0  # one disk, and as many bytes a second of it for all processes
            machine = Machine((1 << 30) // processes, PROCESSORS // processes, sharing=processes)
            cluster = ClusterModel(processes, machine, disk, disk, 2 * disk, disk, start=base.seconds)
            found = simulate(items, cluster)
            above = show_size(max(0, max(ended.peaks) - max(base.peaks)))
            cells = f"{found.seconds:.1f} | {ended.seconds:.1f} | {show_size(max(found.peaks))} | {above}"
            yield f"| {name} | {processes} | {cells} |"


PLANS: dict[str, tuple[Any, Sequence[Any]]] = {
    "405B dense: every tensor renamed": (dense, [{"move": {"from": r"model\.(.*)", "to": r"\1"}}]),
    "405B dense: every tensor scaled": (dense, [{"scale_": {"target": ".*", "by": 0.5}}]),
    "405B dense: `down_proj` at rank 64": (dense, [{"phlora_": {"target": r".*down_proj\.weight", "rank": 64}}]),
    "671B mixture: renamed, scales in bfloat16": (
        mixture,
        [{"cast_": {"target": ".*_scale_inv", "to": "bfloat16"}}, {"move": {"from": r"model\.(.*)", "to": r"\1"}}],
    ),
    "671B mixture: experts 128 to 255 deleted": (
        mixture,
        [{"delete": {"target": r"model\.layers\.\d+\.mlp\.experts\.(12[89]|1[3-9]\d|2\d\d)\..*"}}],
    ),
}
HOST = Machine(64 << 30, 32)


def cluster_of(hosts: int) -> ClusterModel:
    """The cluster of the page."""
    return ClusterModel(hosts, HOST, reads=3e9, writes=2e9, shared=100e9, streams=1e9, flops=5e11, start=5)


def items_of(source: Path, steps: Sequence[Any]) -> tuple[WorkItem, ...]:
    """The physical plan, from headers alone."""
    plan = bs.load({"inputs": [f"m::{source}"], "transforms": list(steps), "output": str(source / "out")})
    program = api.lower_plan(plan, Elsewhere(overwrite=True))
    assert not program.errors, program.errors[:1]
    return plan_work(program, HOST)


def page() -> Iterable[str]:
    """The tables of the page."""
    for title, (source, steps) in PLANS.items():
        items = items_of(source(), steps)
        yield f"**{title}** ({len(items):,} items of work, "
        yield f"{show_size(sum(i.reads for i in items))} read, {show_size(sum(i.writes for i in items))} written)\n"
        yield "| hosts | time | a host moves, at most | largest / mean | peak on a host | critical path |"
        yield "|---:|---:|---:|---:|---:|---|"
        for hosts in (1, 4, 16, 64, 256):
            found = simulate(items, cluster_of(hosts))
            path = ", ".join(f"{p.name} {p.seconds:.0f} s ({p.bound})" for p in found.phases)
            most, peak = show_size(max(found.moved)), show_size(max(found.peaks))
            yield f"| {hosts} | {found.seconds:,.0f} s | {most} | {found.imbalance:.2f} | {peak} | {path} |"
        yield ""


def write_page() -> None:
    """Put the tables into the page."""
    tables = "\n".join(page()).replace("work, \n", "work, ")
    text = PAGE.read_text(encoding="utf-8")
    mark = re.compile(r"(<!-- model:begin -->\n).*?(<!-- model:end -->)", re.DOTALL)
    PAGE.write_text(mark.sub(lambda m: f"{m[1]}{tables}\n{m[2]}", text), encoding="utf-8")


def main(what: str, number: str = "20", megabytes: str = "72") -> None:
    """One of the four."""
    if what == "page":
        return write_page()
    if what == "make":
        return make(Path(number), int(megabytes))
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        place = Path(folder)
        for line in {"scale": lambda: scale(place), "kill": lambda: kill(place, int(number)),
                     "model": lambda: model(place)}[what]():  # fmt: skip
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
