"""How long do low-rank factors (rank 16) of every matrix of GPT-2 take, beside the full SVD in torch?"""

from __future__ import annotations

from _jobs import check_job, checkpoint, compare, plan_job, script_job

if __name__ == "__main__":
    base = checkpoint("gpt2")
    jobs = {
        "check": check_job("phlora", base=base),
        "ours": plan_job("phlora", base=base),
        "ours, first run": plan_job("phlora", ["--no-compile-cache"], base=base),
        "torch script": script_job("phlora", base),
    }
    compare("phlora rank 16, GPT-2", jobs, against={"ours": "torch script", "ours, first run": "torch script"})
