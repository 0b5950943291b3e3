"""How close is casting every tensor of a 2.5 GB checkpoint to copying its files?"""

from __future__ import annotations

from _jobs import check_job, checkpoint, compare, copy_job, plan_job, script_job

if __name__ == "__main__":
    base = checkpoint("llama")
    jobs = {
        "check": check_job("cast", base=base),
        "cp": copy_job(base, sync=False),
        "ours, no fsync": plan_job("cast", ["--no-fsync"], base=base),
        "cp + sync": copy_job(base, sync=True),
        "ours": plan_job("cast", base=base),
        "torch script": script_job("cast", base),
    }
    compare("cast all bf16 to f16, 2.5 GB", jobs, against={"ours": "cp + sync", "ours, no fsync": "cp"})
