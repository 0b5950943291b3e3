"""How close is comparing two 2.5 GB checkpoints, exactly, to reading both?"""

from __future__ import annotations

from _answer import answer
from _checkpoints import checkpoint, nbytes, shown
from _jobs import brainsurgery_job, check_job, plan_job, read_job, script_job

if __name__ == "__main__":
    base, other = checkpoint("llama"), checkpoint("llama", tuned=True)
    jobs = {
        "check": check_job("compare", base=base, other=other),
        "reading both": read_job(base, other),
        "ours": plan_job("compare", base=base, other=other),
        "torch script": script_job("compare", base, other),
        **brainsurgery_job("compare", base=base, other=other),
    }
    answer("compare", f"diff, exact, 2 x {shown(nbytes(base))}", jobs)
