"""Loads and checks random plans until something other than a diagnostic comes out.

    python -m tests.fuzz_plans --cases 100000 --seed 1

Every case is made from the seed and its number alone, so `--first N --cases 1` repeats case N. A failing text is saved
under `--save`, with its traceback behind it. Failing is: another exception than PlanError, a warning, a case that takes
longer than `--limit` seconds, more memory than `--memory` MiB beyond what is there at the start, a diagnostic that
cannot be printed or has no code. Exit status 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple, NoReturn

import brainsurgery_jax.select.pattern as pattern_module
from brainsurgery_jax import api
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.lower import lower, start
from brainsurgery_jax.plan.oly import parse_oly
from brainsurgery_jax.plan.overrides import read_plan_files
from brainsurgery_jax.plan.source import List, Map, Scalar
from brainsurgery_jax.select.limit import TimeLimit
from tests import fuzz_texts
from tests.fuzz_values import FILES
from tests.null.world import Headers

PLANS = Path(__file__).parents[1] / "plans"
MOST_TEXT = 200_000  # characters of one printed diagnostic


class Case(NamedTuple):
    """A random text: the bytes of a plan file with overrides beside it, or a line of OLY."""

    plan: bytes
    overrides: tuple[str, ...] = ()
    line: str | None = None


class TooSlow(BaseException):
    """Not caught by anybody's `except Exception`."""


class Fuzzer:
    """One world for all cases; `seen` counts the codes of what came out, `clean` the plans without a mistake."""

    def __init__(self, seed: int, *, limit_s: float = 5.0):
        self.seed, self.limit_s = seed, limit_s
        self.texts = fuzz_texts.corpus(PLANS)
        self.world = Headers(FILES)
        self.seen: Counter[str] = Counter()
        self.clean = 0

    def case(self, number: int) -> Case:
        random = Random(f"{self.seed}:{number}")
        if random.random() < 0.1:
            return Case(b"inputs: [m::m.safetensors]", line=fuzz_texts.line(random))
        text = fuzz_texts.plan_text(random, self.texts)
        return Case(text, (fuzz_texts.override(random),) if random.random() < 0.1 else ())

    def check(self, case: Case) -> tuple[Diagnostic, ...]:
        """All that is wrong with a case; raises what should not come out."""
        self.world.graph = Graph()
        self.world.destinations.clear()
        try:
            found = self.diagnostics(case)
        except PlanError as error:
            found = error.diagnostics
            assert found, "an error without a diagnostic"
        for one in found:
            text = str(one)
            text.encode()
            assert one.code, text
            assert one.message, one.code
            assert len(text) < MOST_TEXT, f"a diagnostic of {len(text)} characters: {text[:200]}"
            self.seen[one.code] += 1
        self.clean += not found
        return found

    def diagnostics(self, case: Case) -> tuple[Diagnostic, ...]:
        root = read_plan_files(["plan.yaml", *case.overrides], lambda _: case.plan.decode("utf-8")).root
        if case.line is not None:
            node = parse_oly(case.line)
            key = Scalar("transforms", "transforms", node.span)
            root = Map((*root.entries, (key, List((node,), node.span))), root.span)
        plan = api.parse_document(root)
        program = lower(start(plan.data, self.world), plan.data, self.world)
        return (*plan.problems, *program.diagnostics)

    def failure(self, number: int) -> tuple[Case, str] | None:
        """The case and what went wrong with it, or None."""
        case = self.case(number)
        try:
            with time_limit(self.limit_s):
                self.check(case)
        except (Exception, TooSlow):  # whatever comes out is what is looked for
            return case, traceback.format_exc()
        return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow once so much time of the processor has been spent: how busy the machine is does not matter."""

    def stop(*_: Any) -> NoReturn:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory(mebibytes: int) -> None:
    """Makes a MemoryError of what would take so much more memory than there is in use, where that is told (Linux)."""
    usage = Path("/proc/self/statm")
    if usage.exists():
        most = int(usage.read_text().split()[0]) * resource.getpagesize() + (mebibytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_plans", description="Fuzz plans.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds that one case may take")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that may be taken beyond those in use")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    save = options.save.absolute()
    fuzzer = Fuzzer(options.seed, limit_s=options.limit)
    fuzzer.failure(0)  # imports what is imported on first use
    limit_memory(options.memory)
    pattern_module.TIME_LIMIT = TimeLimit(0.05)  # seconds; many texts run into it
    warnings.simplefilter("error")
    failures, done, started = 0, 0, monotonic()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)  # plans name files
        for number in range(options.first, options.first + options.cases):
            if monotonic() - started > options.seconds:
                break
            done += 1
            if (failed := fuzzer.failure(number)) is not None:
                failures += 1
                report(save, f"{options.seed}-{number}", *failed)
        os.chdir("/")
    tell(done, failures, monotonic() - started, fuzzer)
    return 1 if failures else 0


def report(save: Path, name: str, case: Case, trace: str) -> None:
    save.mkdir(parents=True, exist_ok=True)
    text = case.plan if case.line is None else case.line.encode()
    rest = f"\n\n# overrides: {case.overrides}\n# {trace}".encode(errors="backslashreplace")
    (save / f"{name}.txt").write_bytes(text + rest)
    print(f"case {name}: {trace.splitlines()[-1][:200]}", flush=True)


def tell(done: int, failures: int, seconds: float, fuzzer: Fuzzer) -> None:
    peak, seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, fuzzer.seen
    print(f"{done} cases, {failures} failures, {seconds:.0f} s, {done / seconds:.0f} cases/s, peak {peak} MiB")
    print(f"{fuzzer.clean} without a mistake; {seen.total()} diagnostics of {len(seen)} codes: ", end="")
    print(", ".join(f"{code} {count}" for code, count in seen.most_common()))


if __name__ == "__main__":
    sys.exit(main())
