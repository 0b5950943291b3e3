"""How long do listing a checkpoint and printing the help take? (The name without `_` is a module of Python's.)"""

from __future__ import annotations

from _answer import answer
from _checkpoints import DATA, checkpoint, hollow
from _jobs import our_job, script_job

if __name__ == "__main__":
    model = checkpoint("llama")
    few, many = (hollow(DATA / f"hollow-{n}.safetensors", n) for n in (300, 20_000))
    jobs = {
        "help": our_job("--help"),
        "inspect a model": our_job("inspect", str(model)),
        "inspect 300 tensors": our_job("inspect", str(few)),
        "inspect 20,000 tensors": our_job("inspect", str(many)),
        "script, 20,000 tensors": script_job("listing", many),
    }
    answer("inspect", "listing headers", jobs)
