"""How close is renaming every tensor of a 2.5 GB checkpoint to copying its files?"""

from __future__ import annotations

from _jobs import check_job, checkpoint, compare, copy_job, plan_job, script_job

if __name__ == "__main__":
    base = checkpoint("llama")
    jobs = {
        "check": check_job("rename", base=base),
        "cp": copy_job(base, sync=False),
        "ours, no fsync": plan_job("rename", ["--no-fsync"], base=base),
        "cp + sync": copy_job(base, sync=True),
        "ours": plan_job("rename", base=base),
        "torch script": script_job("rename", base),
    }
    compare("rename all, 2.5 GB", jobs, against={"ours": "cp + sync", "ours, no fsync": "cp"})
