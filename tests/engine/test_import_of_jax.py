"""JAX is imported beside other work: no thread gets an unfinished module, and numpy computes if it takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from brainsurgery_jax._lazy import LazyModule  # pyright: ignore[reportAttributeAccessIssue]

BEGIN = """
import sys, threading
from brainsurgery_jax.engine.compute import kernels

class Seen(threading.Thread):
    def start(self):
        print(*(name in sys.modules for name in ("numpy", "ml_dtypes", "jax")))
        super().start()

kernels.Thread = Seen
kernels.PATIENCE = 600
kernels.begin_import_of_jax()
print(kernels.may_compile(), "jax" in sys.modules)
"""

SLOW = """
import sys, threading
from brainsurgery_jax.engine.compute import kernels

class Slow(threading.Thread):
    def run(self):
        assert go_on.wait(60)
        super().run()

go_on = threading.Event()
kernels.Thread, kernels.PATIENCE = Slow, 0.01
print(kernels.may_compile(), "jax" in sys.modules)
go_on.set()
kernels.begin_import_of_jax().done.wait()
print(kernels.may_compile())
"""


def test_numpy_is_imported_before_another_thread_imports_jax() -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == ["True", "True", "False", "True", "True"]


def test_an_import_that_takes_long_is_not_waited_for() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == ["False", "False", "True"]


def test_a_module_is_not_imported_while_another_thread_imports_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "slow_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\nsys.begun.set()\nassert sys.go_on.wait(60)\nNAME = 1\nfrom slow_package.inner import VALUE\n"
    )
    (folder / "inner.py").write_text("from slow_package import NAME\nVALUE = NAME\n")
    monkeypatch.syspath_prepend(tmp_path)
    begun, go_on = Event(), Event()
    monkeypatch.setattr(sys, "begun", begun, raising=False)
    monkeypatch.setattr(sys, "go_on", go_on, raising=False)
    found: list[int] = []
    first = Thread(target=lambda: found.append(__import__("slow_package").VALUE))
    first.start()
    assert begun.wait(60)
    second = Thread(target=lambda: found.append(LazyModule("slow_package.inner").VALUE))
    second.start()
    second.join(0.2)  # it may get as far as it can
    go_on.set()
    first.join(60)
    second.join(60)
    assert found == [1, 1]
