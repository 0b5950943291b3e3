"""How long do listing the headers of a 671B mixture, and checking five steps over them, take?

Some 90,000 tensors in 163 shards, headers and holes. Judged by processor time, so that another job beside it hides
nothing and spoils nothing.
"""

from __future__ import annotations

from dataclasses import replace

from _answer import answer
from _checkpoints import mixture
from _jobs import check_job, our_job

if __name__ == "__main__":
    base = mixture()
    check = replace(check_job("mixture", base=base), kind="ours")
    jobs = {"listing": our_job("inspect", str(base)), "check, 5 steps": check}
    answer("mixture", "the headers of a 671B mixture", jobs)
