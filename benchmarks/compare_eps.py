"""How close is comparing GPT-2 with a fine-tuned variant, within a tolerance, to reading both?"""

from __future__ import annotations

from _answer import answer
from _checkpoints import checkpoint, nbytes, shown
from _jobs import brainsurgery_job, check_job, plan_job, read_job, script_job

if __name__ == "__main__":
    base, other = checkpoint("gpt2"), checkpoint("gpt2", tuned=True)
    jobs = {
        "check": check_job("compare_eps", base=base, other=other),
        "reading both": read_job(base, other),
        "ours": plan_job("compare_eps", base=base, other=other),
        "torch script": script_job("compare_eps", base, other),
        **brainsurgery_job("compare_eps", base=base, other=other),
    }
    answer("compare_eps", f"diff, eps 1e-3, GPT-2, 2 x {shown(nbytes(base))}", jobs)
