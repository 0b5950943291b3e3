"""One target under the fuzzer: the process that `campaign.py` starts.

python -m tests.fuzz.process TARGET FOLDER FAULTS MEBIBYTES [options of libFuzzer] CORPUS...
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
import warnings
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

try:
    atheris: Any = import_module("atheris")  # not everywhere, and without types
except ImportError:
    sys.exit("atheris is missing: `make fuzz-files` installs it")

with atheris.instrument_imports(include=["brainsurgery_jax", "zipfile", "numpy.lib"], enable_loader_override=False):
    from tests.fuzz import checkpoints
    from tests.fuzz.targets import DOCUMENTED, TARGETS, fresh
from tests.fuzz.watching import Watch
from tests.fuzz_plans import limit_memory


def main(name: str, folder: str, faults: str, mebibytes: str, *options: str) -> None:
    place = fresh(Path(folder) / "world")
    os.chdir(place)
    target = TARGETS[name](place)
    seeds = [*target.seeds, *checkpoints.texts(name, fresh(Path(folder) / "seeds"))]
    for seed in seeds:
        Path(options[-2], f"seed-{hashlib.sha1(seed).hexdigest()[:12]}").write_bytes(seed)
    for seed in seeds:  # imports what is imported on first use
        _try(target.read, seed)
    watch, saved = Watch(place) if target.confined else nullcontext(), Path(faults)
    warnings.simplefilter("error")
    limit_memory(int(mebibytes))

    def one_input(data: bytes) -> None:
        try:
            with watch:
                target.read(data)
        except DOCUMENTED:
            return
        except Exception as fault:
            _save(saved, data, fault)

    atheris.Setup([sys.argv[0], *options], one_input)
    atheris.Fuzz()


def _try(read: Any, data: bytes) -> None:
    try:
        read(data)
    except Exception:  # found again under the fuzzer
        return


def _save(faults: Path, data: bytes, fault: Exception) -> None:
    """Keep the first input of each fault, which is known by its class and the line where it comes up."""
    at = traceback.extract_tb(fault.__traceback__)[-1]
    path = faults / f"{type(fault).__name__}-{Path(at.filename).stem}-{at.lineno}"
    if not path.exists():
        path.write_bytes(data)
        path.with_name(f"{path.name}.txt").write_text("".join(traceback.format_exception(fault)), errors="replace")


if __name__ == "__main__":
    main(*sys.argv[1:])
