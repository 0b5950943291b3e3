"""Fuzzes what reads files of strangers, guided by coverage (atheris, which is libFuzzer for Python).

    python -m tests.fuzz.campaign safetensors pickle --runs 1000000
    python -m tests.fuzz.campaign --seconds 600                        every target, so long each

Each target runs in a process of its own, one after the other, in a folder in memory. It starts from the files in
`corpus/`, and from checkpoints that are right. What is a fault: an error that is not documented, an input that takes
more than `--limit` seconds, an allocation beyond `--memory` MiB, a file opened outside of the folder. Of each fault one
input is saved under `--save`, and the campaign goes on. The table that it prints counts the inputs that were tried.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
_SHM = Path("/dev/shm")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=60, help="for each target, unless --runs are done before")
    parser.add_argument("--limit", type=int, default=20, help="seconds that one input may take")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that an input may take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, default=Path("build/fuzz"), help="for faults, and inputs that found paths")
    options = parser.parse_args(given)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    print("| target | inputs tried | faults |\n|---|---:|---:|", flush=True)
    total = faults = 0
    for name in options.targets or TARGETS:
        tried, found = fuzz(name, options)
        print(f"| {name} | {tried:,} | {found} |", flush=True)
        total, faults = total + tried, faults + found
    print(f"| all | {total:,} | {faults} |")
    return 1 if faults else 0


def fuzz(name: str, options: argparse.Namespace) -> tuple[int, int]:
    """Fuzz one target in a process of its own; how many inputs it tried, and how many faults it saved."""
    save = options.save.absolute() / name
    found, faults = save / "corpus", save / "faults"
    found.mkdir(parents=True, exist_ok=True)
    faults.mkdir(exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None) as folder:
        settings = [
            f"-runs={options.runs}", f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-max_len=8192",
            f"-timeout={options.limit}", f"-artifact_prefix={faults}/", "-rss_limit_mb=8192", "-print_final_stats=1",
        ]  # fmt: skip
        command = [sys.executable, "-m", "tests.fuzz.process", name, folder, str(faults), str(options.memory)]
        words = [*command, *settings, str(found), str(CORPUS / name)]
        done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    (save / "log.txt").write_text(done.stderr[-100_000:])
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if counted is None:
        print(done.stderr[-2000:], file=sys.stderr)
    return int(counted[1]) if counted else 0, sum(not p.name.endswith(".txt") for p in faults.iterdir())


if __name__ == "__main__":
    sys.exit(main())
