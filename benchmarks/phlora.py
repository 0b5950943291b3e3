"""How long do low-rank factors (rank 16) of every matrix of GPT-2 take, beside the full SVD in torch?"""

from __future__ import annotations

from _answer import answer
from _checkpoints import checkpoint
from _jobs import brainsurgery_job, check_job, plan_job, script_job

if __name__ == "__main__":
    base = checkpoint("gpt2")
    jobs = {
        "check": check_job("phlora", base=base),
        "ours": plan_job("phlora", base=base),
        "ours, first run": plan_job("phlora", first=True, base=base),
        "torch script": script_job("phlora", base),
        **brainsurgery_job("phlora", base=base),
    }
    answer("phlora", "phlora, rank 16, GPT-2", jobs)
