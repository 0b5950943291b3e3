"""How close is making four experts of every MLP (7.3 GB) to copying as many bytes?"""

from __future__ import annotations

import shutil

from _answer import beside_copies
from _checkpoints import DATA, checkpoint
from _jobs import plan_job

if __name__ == "__main__":
    base, like = checkpoint("llama"), DATA / "experts"
    plan_job("experts", base=base)()
    shutil.rmtree(like, ignore_errors=True)
    (DATA / "out").rename(like)
    try:
        beside_copies("experts", "dense to 4 experts", base, copied=like)
    finally:
        shutil.rmtree(like)
