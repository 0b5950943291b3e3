"""How long does `check` take on 20 steps that each match all of 20,000 tensors?

One process from its start to its exit, without loading JAX. The checkpoint is a header and a hole.
"""

from __future__ import annotations

from dataclasses import replace

from _answer import answer
from _checkpoints import DATA, hollow
from _jobs import check_job

if __name__ == "__main__":
    base = hollow(DATA / "hollow-20000.safetensors", 20_000)
    job = replace(check_job("steps", base=base), kind="ours")
    answer("check_20k", "check, 20 steps over 20,000 tensors", {"ours": job})
