"""How close is making four experts of every MLP (7.3 GB) to writing as many bytes with cp?"""

from __future__ import annotations

from _jobs import check_job, checkpoint, compare, copy_job, plan_job, script_job

if __name__ == "__main__":
    base = checkpoint("llama")
    jobs = {
        "check": check_job("experts", base=base),
        "cp": copy_job(base, sync=False),
        "ours, no fsync": plan_job("experts", ["--no-fsync"], base=base),
        "cp + sync": copy_job(base, sync=True),
        "ours": plan_job("experts", base=base),
        "torch script": script_job("experts", base),
    }
    compare("dense to 4 experts, 7.3 GB", jobs, against={"ours": "cp + sync", "ours, no fsync": "cp"})
