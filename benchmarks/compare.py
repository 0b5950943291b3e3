"""How close is comparing two 2.5 GB checkpoints to reading both?"""

from __future__ import annotations

from _jobs import check_job, checkpoint, compare, plan_job, read_job, script_job

if __name__ == "__main__":
    base, other = checkpoint("llama"), checkpoint("llama", tuned=True)
    jobs = {
        "check": check_job("compare", base=base, other=other),
        "reading both": read_job(base, other),
        "ours": plan_job("compare", base=base, other=other),
        "torch script": script_job("compare", base, other),
    }
    compare("diff of two checkpoints, 2 x 2.5 GB", jobs, against={"ours": "reading both"})
