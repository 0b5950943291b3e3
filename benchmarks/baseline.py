"""Is this checkout as fast as another commit? `python benchmarks/baseline.py WORKTREE [ROW...]`.

WORKTREE is a checkout of the other commit (`git worktree add`). The same jobs are run by both packages in turn, so that
a drift of the machine meets both alike, one warm-up first. Printed is a table in Markdown: medians of wall time,
processor time and peak of anonymous memory, and the median of the ratios of neighbouring runs, below 1 where this
checkout is better. BENCH_DATA and BENCH_REPETITIONS are those of `all.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from _answer import repetitions
from _checkpoints import DATA, checkpoint, count, hollow
from _jobs import COMMAND, HERE, PLANS, Job, check_job, clear, our_job, plan_job
from _measure import Run, measure
from rewrite_llama import MATRICES


class Pair(NamedTuple):
    """One job, run by the other commit and then by this checkout."""

    before: Run
    after: Run

    def ratio(self, figure: str) -> float:
        """How much of the other's time or memory this one takes."""
        return getattr(self.after, figure) / max(getattr(self.before, figure), 1e-9)


def _model(plan: str) -> Callable[[], Mapping[str, Job]]:
    return lambda: {plan: plan_job(plan, ["--no-fsync"], base=checkpoint("llama"), tensors=count(checkpoint("llama")))}


def _factors() -> Mapping[str, Job]:
    return {"phlora": plan_job("phlora", base=checkpoint("gpt2"))}


def _rewrite() -> Mapping[str, Job]:
    return {"rewrite": plan_job("rewrite", base=checkpoint("gpt2"), other=checkpoint("gpt2", tuned=True))}


def _rewrite_llama() -> Mapping[str, Job]:
    base, other = checkpoint("llama"), checkpoint("llama", tuned=True)
    return {"rewrite_llama": plan_job("rewrite", base=base, other=other, matrices=MATRICES, dtype="float16")}


def _listing() -> Mapping[str, Job]:
    many = hollow(DATA / "hollow-20000.safetensors", 20_000)
    return {"help": our_job("--help"), "inspect 20,000 tensors": our_job("inspect", str(many))}


def _steps() -> Mapping[str, Job]:
    return {"check_20k": check_job("steps", base=hollow(DATA / "hollow-20000.safetensors", 20_000))}


def _orbax() -> Mapping[str, Job]:
    model, ours = checkpoint("llama"), DATA / "orbax-ours"
    if not ours.with_suffix(".done").exists():
        shutil.rmtree(ours, ignore_errors=True)
        variables = (f"vars.base={model}", f"vars.out={ours}", "vars.format=orbax")
        command = [*COMMAND, "run", "--quiet", str(PLANS / "orbax.yaml"), *variables]
        subprocess.run(command, check=True, cwd=HERE.parent)
        ours.with_suffix(".done").touch()
    return {
        "to orbax": plan_job("orbax", ["--no-fsync"], base=model, format="orbax"),
        "from orbax": plan_job("orbax", ["--no-fsync"], base=ours, format="safetensors"),
    }


ROWS: Mapping[str, Callable[[], Mapping[str, Job]]] = {
    **{plan: _model(plan) for plan in ("rename", "scale", "cast", "experts")},
    "phlora": _factors, "rewrite": _rewrite, "rewrite_llama": _rewrite_llama,
    "inspect": _listing, "check_20k": _steps, "orbax": _orbax,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure this checkout beside another commit.")
    parser.add_argument("worktree", type=Path, help="a checkout of the other commit")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which (default: all): {', '.join(ROWS)}")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.rows) - set(ROWS)):
        parser.error(f"there is no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    print("| job | before, s | after, s | wall ratio | before, CPU s | after, CPU s | CPU ratio | memory ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for row in chosen.rows or ROWS:
        for name, job in ROWS[row]().items():
            print(_line(name, _measured(job, chosen.worktree.resolve())), flush=True)
    clear()


def _measured(job: Job, worktree: Path) -> list[Pair]:
    """Neighbouring runs of a job: each goes first as often as the other. The first pair warms up."""
    found = []
    for turn in range(repetitions() + 1):
        order = (worktree, HERE.parent) if turn % 2 else (HERE.parent, worktree)
        runs = {package: _run(job, package) for package in order}
        if turn:
            found.append(Pair(runs[worktree], runs[HERE.parent]))
    return found


def _run(job: Job, package: Path) -> Run:
    """A job, by the package of a checkout: its folder comes first where Python looks for modules."""
    job.prepare()
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    return measure(job.command, env={**job.environment, "PYTHONPATH": path}, cwd=DATA)


def _line(name: str, pairs: list[Pair]) -> str:
    def middle(figure: str) -> list[str]:
        sides = [statistics.median(getattr(run, figure) for run in side) for side in zip(*pairs, strict=True)]
        return [*(f"{value:.3g}" for value in sides), f"{statistics.median(p.ratio(figure) for p in pairs):.3f}"]

    return f"| {' | '.join([name, *middle('wall'), *middle('cpu'), middle('anonymous')[-1]])} |"


if __name__ == "__main__":
    main()
