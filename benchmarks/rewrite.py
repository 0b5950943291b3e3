"""How long does the low-rank rewrite (rank 64) of a fine-tuned GPT-2's deltas take, beside the full SVD in torch?"""

from __future__ import annotations

from _answer import answer
from _checkpoints import checkpoint
from _jobs import brainsurgery_job, check_job, plan_job, script_job

if __name__ == "__main__":
    base, other = checkpoint("gpt2"), checkpoint("gpt2", tuned=True)
    jobs = {
        "check": check_job("rewrite", base=base, other=other),
        "ours": plan_job("rewrite", base=base, other=other),
        "ours, 1e-3": plan_job("rewrite", ["vars.tol=1e-3"], base=base, other=other),
        "ours, exact": plan_job("rewrite", ["vars.method=exact"], base=base, other=other),
        "torch script": script_job("rewrite", base, other, "bfloat16", ".*"),
        **brainsurgery_job("rewrite", base=base, other=other),
    }
    answer("rewrite", "delta, rank 64, cast: GPT-2, excess 1e-4", jobs)
