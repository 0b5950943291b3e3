"""Ctrl-C, SIGTERM and SIGHUP at any moment: nothing is left hidden, and what is said of the outputs is true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import read, write
from tests.cli.conftest import Answer, environment

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
SIGNALS = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)


@pytest.fixture
def slow(place: Path) -> Path:
    """A plan that says something first, and then works for a while."""
    matrices = {f"w{i}": np.random.default_rng(i).standard_normal((700, 700)) for i in range(30)}
    write(place / "base.safetensors", matrices)
    steps = "[dump, {phlora_: {target: '.*', rank: 3}}]"
    (place / "slow.yaml").write_text(f"inputs: [base.safetensors]\ntransforms: {steps}\noutput: slow\n")
    return place


@SIGNALS
@pytest.mark.parametrize("format", ["safetensors", "orbax", "torch"])
def test_a_run_that_is_stopped_leaves_nothing_and_says_so(slow: Path, number: signal.Signals, format: str) -> None:
    before = sorted(os.listdir(slow))
    line = [sys.executable, "-m", "brainsurgery_jax", "slow.yaml", f"output={{path: slow, format: {format}}}"]
    with subprocess.Popen(
        line, cwd=slow, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()  # what `dump` says comes first: the work has begun
        run.send_signal(number)
        _, err = run.communicate()
    assert (run.returncode, err) == (CODES[number], f"{WORDS[number]}: nothing was published\n")
    assert sorted(os.listdir(slow)) == before


# When the signal comes, exactly; with the first two nothing is published.
MOMENTS = {
    "while it is written": "local.fsync_path = around(local.fsync_path)",
    "when it is complete": "staging.Staging.complete = around(staging.Staging.complete)",
    "at the first look": "publishing.publish = around(publishing.publish, before=True)",
    "at the rename": "atomic._into_place = around(atomic._into_place, before=True)",
    "after the rename": "atomic._renameat2 = around(atomic._renameat2)",
    "at the removal": "atomic.remove_replaced = around(atomic.remove_replaced, before=True)",
    "when it is told": "progress.Plain.__call__ = around(progress.Plain.__call__, after=events.Published)",
    "at the end": "plans.summarize = around(plans.summarize, before=True)",
}
PROGRAM = """
import os, sys
from brainsurgery_jax.cli import app, plans, progress
from brainsurgery_jax.engine import events
from brainsurgery_jax.engine.run import staging
from brainsurgery_jax.store import atomic, publishing
from brainsurgery_jax.store.io import local

def around(was, before=False, after=object):
    def wrapped(*given, **more):
        if before:
            os.kill(os.getpid(), {number})
        result = was(*given, **more)
        if not before and isinstance(given[-1], after):
            os.kill(os.getpid(), {number})
        return result
    return wrapped

{exchange}
{moment}
sys.argv = ["brainsurgery-jax", "plan.yaml", "--overwrite", "--summarize"]
app.main()
"""


def stopped(place: Path, number: int, moment: str, *, exchange: bool = True) -> Answer:
    without = "" if exchange else "atomic._renameat2 = lambda *given: False"
    code = PROGRAM.format(number=int(number), moment=MOMENTS[moment], exchange=without)
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder(place: Path) -> Path:
    """A plan that edits a folder in place."""
    (place / "model").mkdir()
    write(place / "model" / "model.safetensors", {"w": np.ones(3, np.float32)})
    steps = "transforms: [{scale_: {target: w, by: 2}}]"
    (place / "plan.yaml").write_text(f"inputs: [model]\n{steps}\noutput: {{path: model, overwrite: true}}\n")
    return place


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_what_is_said_of_the_output_is_true_whenever_the_signal_comes(
    folder: Path, number: signal.Signals, moment: str, exchange: bool
) -> None:
    before = sorted(os.listdir(folder))
    done = stopped(folder, number, moment, exchange=exchange)
    (value, *_) = read(folder / "model" / "model.safetensors")["w"]
    told = done.err.splitlines()[-1]
    assert done.code == CODES[number]
    assert (value, told) in {
        (1, f"{WORDS[number]}: nothing was published"),
        (2, f"{WORDS[number]}: published already: model"),
        (2, WORDS[number]),  # at the end, after the line that says what was written
    }
    assert ("wrote model: 1 tensor, 12 B" in done.err) == (value == 2)
    assert value == (1 if moment in ("while it is written", "when it is complete") else 2)
    assert sorted(os.listdir(folder)) == before


@SIGNALS
def test_a_signal_inside_of_a_library_that_catches_everything_is_not_lost(folder: Path, number: signal.Signals) -> None:
    (folder / "plan.yaml").write_text("inputs: [model]\noutput: {path: out, format: dcp}\n")
    code = PROGRAM.format(number=int(number), moment="library._write_item = around(library._write_item)", exchange="")
    code = "import torch.distributed.checkpoint.filesystem as library\n" + code
    before = sorted(os.listdir(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (CODES[number], f"{WORDS[number]}: nothing was published\n")
    assert sorted(os.listdir(folder)) == before


def test_orbax_has_stopped_writing_before_what_it_wrote_is_removed(folder: Path) -> None:
    """Its threads go on when it is interrupted."""
    write(folder / "model" / "model.safetensors", {f"w{n}": np.ones((64, 1024), np.float32) for n in range(60)})
    (folder / "plan.yaml").write_text("inputs: [model]\noutput: {path: out, format: orbax}\n")
    code = """
import os, signal, sys, threading, time
from brainsurgery_jax.cli.app import main
from brainsurgery_jax.store.orbax import apart
from brainsurgery_jax.store.orbax import encode as orbax_encode

apart.GRACE_S = 600
save = orbax_encode._save

def slowly(path, leaves, *rest, **more):
    def stop():
        while not os.path.isdir(path + ".orbax-checkpoint-tmp"):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=stop).start()
    save(path, leaves, *rest, **more)

orbax_encode._save = slowly
sys.argv = ["brainsurgery-jax", "plan.yaml"]
main()
"""
    before = sorted(os.listdir(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "terminated: nothing was published\n")
    assert sorted(os.listdir(folder)) == before


def test_a_signal_within_an_import_that_fails_of_it_is_no_defect(folder: Path) -> None:
    """As extension modules do: `ImportError: initialization failed`."""
    code = """
from brainsurgery_jax.cli import app, plans
def run(*given):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as stop:
        raise ImportError("initialization failed") from stop
plans.run = run
app.main()
"""
    line = [sys.executable, "-c", code, "plan.yaml"]
    done = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_signal_that_the_caller_ignores_stays_ignored(folder: Path) -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + PROGRAM.format(
        number=int(signal.SIGHUP), moment=MOMENTS["when it is complete"], exchange=""
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "wrote model: 1 tensor, 12 B\n")


def test_a_second_signal_does_not_disturb_the_removal_of_what_was_written(slow: Path) -> None:
    code = """
import os, signal, sys
from brainsurgery_jax.cli import app
from brainsurgery_jax.store import atomic
remove = atomic.remove
def impatient(path):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    remove(path)
atomic.remove = impatient
app.main()
"""
    before = sorted(os.listdir(slow))
    line = [sys.executable, "-c", code, "slow.yaml"]
    with subprocess.Popen(
        line, cwd=slow, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.send_signal(signal.SIGTERM)
        run.communicate()
    assert run.returncode in (130, 143)
    assert sorted(os.listdir(slow)) == before


def test_a_stop_while_the_command_is_imported_is_told_without_a_traceback(tmp_path: Path) -> None:
    hook = (
        "import os, signal, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'brainsurgery_jax.cli.app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hook)
    own = environment()
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), own.get("PYTHONPATH"))))
    line = [sys.executable, "-m", "brainsurgery_jax", "--version"]
    done = subprocess.run(line, env=own, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
