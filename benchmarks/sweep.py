"""Does time follow the size of a model, and memory not?

Models differ in their number of layers alone. One size at a time is on the disk, 16 GB with the output of the largest.
BENCH_SIZES chooses sizes ("2 GB,8 GB"); the figures of the others are kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from _answer import conclude, earlier, measure_all
from _checkpoints import SMALL, count, layered
from _jobs import Job, copy_job, plan_job

SIZES = {"2 MB": 2e6, "4 MB": 4e6, "8 MB": 8e6} if SMALL else {"0.1 GB": 1e8, "0.5 GB": 5e8, "2 GB": 2e9, "8 GB": 8e9}


def jobs_of(size: str, base: Path) -> dict[str, Job]:
    """The jobs at one size."""
    given = {"base": base, "tensors": count(base)}
    jobs = {f"cp + sync, {size}": copy_job(base, sync=True)}
    jobs |= {f"{plan}, {size}": plan_job(plan, **given) for plan in ("rename", "scale", "cast")}
    return jobs | {f"low rank, {size}": plan_job("lowrank", **given)}


def main() -> None:
    chosen = os.environ.get("BENCH_SIZES", ",".join(SIZES)).split(",")
    record = earlier("sweep")
    measured: dict[str, Any] = {}
    profiles: dict[str, Any] = {}
    for size, nbytes in SIZES.items():
        if size not in chosen:
            for kept, figures in ((measured, record.get("jobs", {})), (profiles, record.get("profiles", {}))):
                kept |= {name: value for name, value in figures.items() if name.endswith(f", {size}")}
            continue
        base = layered(int(nbytes))
        try:
            figures, shares = measure_all("sweep", jobs_of(size, base))
        finally:
            shutil.rmtree(base)
            base.with_suffix(".done").unlink()
        measured, profiles = {**measured, **figures}, {**profiles, **shares}
    conclude("sweep", f"the same jobs, {' to '.join((*SIZES,)[:: len(SIZES) - 1])}", measured, profiles)


if __name__ == "__main__":
    main()
