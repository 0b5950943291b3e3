"""How long does the low-rank rewrite (rank 64) of the projections of a fine-tuned Llama take, beside torch's full SVD?

Exact methods take minutes here and are run once. BrainSurgery has no SVD of bfloat16.
"""

from __future__ import annotations

from typing import Any

from _answer import answer
from _checkpoints import checkpoint
from _jobs import check_job, plan_job, script_job

MATRICES = r"model\.layers\.\d+\..+_proj\.weight"

if __name__ == "__main__":
    base, other = checkpoint("llama"), checkpoint("llama", tuned=True)
    given: dict[str, Any] = {"base": base, "other": other, "matrices": MATRICES, "dtype": "float16"}
    jobs = {
        "check": check_job("rewrite", **given),
        "ours": plan_job("rewrite", **given),
        "ours, 1e-3": plan_job("rewrite", ["vars.tol=1e-3"], **given),
        "ours, exact": plan_job("rewrite", ["vars.method=exact"], once=True, **given),
        "torch script": script_job("rewrite", base, other, "float16", MATRICES, once=True),
    }
    answer("rewrite_llama", "delta, rank 64, cast: Llama 1B, excess 1e-4", jobs)
