"""The environments where the libraries live that the layouts are for, and runs in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOMES = {"tunix": ".venv-tunix", "gemma": ".venv-tunix", "maxtext": ".venv-maxtext"}


def python(library: str) -> Path:
    """The interpreter beside which `tunix`, `gemma` or `maxtext` is installed; `make behaviour` puts it there."""
    found = ROOT / os.environ.get(f"BEHAVIOUR_{library.upper()}", f"{HOMES[library]}/bin/python")
    if not found.exists():
        raise FileNotFoundError(
            f"no environment for {library} at {found}: `make behaviour` makes it and runs the tests"
        )
    return found


def ask(library: str, *words: str) -> None:
    """Runs `tests.behaviour.LIBRARY_model WORDS` where that library is."""
    command = [str(python(library)), "-m", f"tests.behaviour.{library}_model", *words]
    # How strictly our own tests have JAX promote is not for others.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(command, cwd=ROOT, env=kept | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{library} refused {words[0]}:\n{done.stderr[-3000:]}")
