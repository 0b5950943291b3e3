"""How fast is a checkpoint taken from safetensors to orbax and back? (The name without `_` is a package's.)

It is read back from what we write, which is not compressed, and from what orbax writes when it is told nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from _answer import answer
from _checkpoints import DATA, checkpoint, nbytes, shown
from _jobs import COMMAND, HERE, PLANS, check_job, copy_job, our_job, plan_job, script_job


def made(name: str, *command: object) -> Path:
    """An orbax checkpoint, made once by a command that is told where to."""
    folder = DATA / name
    if not folder.with_suffix(".done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([*map(str, command)], check=True, cwd=HERE.parent)
        folder.with_suffix(".done").touch()
    return folder


if __name__ == "__main__":
    model = checkpoint("llama")
    variables = (f"vars.base={model}", f"vars.out={DATA / 'orbax-ours'}", "vars.format=orbax")
    ours = made("orbax-ours", *COMMAND, "run", "--quiet", PLANS / "orbax.yaml", *variables)
    usual = made("orbax-usual", sys.executable, HERE / "scripts" / "to_orbax.py", model, DATA / "orbax-usual")
    jobs = {
        "check": check_job("orbax", base=model, format="orbax"),
        "cp": copy_job(model, sync=False),
        "ours, to orbax": plan_job("orbax", ["--no-fsync"], base=model, format="orbax"),
        "ours, back": plan_job("orbax", ["--no-fsync"], base=ours, format="safetensors"),
        "ours, from compressed": plan_job("orbax", ["--no-fsync"], base=usual, format="safetensors"),
        "ours, listing": our_job("inspect", str(ours)),
        "script, to orbax": script_job("to_orbax", model),
        "script, back": script_job("from_orbax", ours),
    }
    answer("orbax", f"safetensors to orbax and back, {shown(nbytes(model))}", jobs)
