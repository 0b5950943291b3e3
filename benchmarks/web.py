"""How soon does the workbench show a model, in a real chromium, and what do its figures cost beside reading it?"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ml_dtypes
import numpy as np
from _answer import conclude, repetitions
from _checkpoints import DATA, SMALL, hollow, llama
from _jobs import COMMAND, HERE, compile_package
from _measure import Run, alternate, anonymous_memory, forget
from playwright.sync_api import Browser, Page, sync_playwright
from safetensors.numpy import save_file

NAMES = 2_000 if SMALL else 90_000
BUDGET = "500MB"
MATRIX = "model.layers.0.mlp.down_proj.weight"
"""2048 x 8192."""


def model(name: str, dtype: type, layers: int) -> Path:
    """A Llama-shaped checkpoint of about 1 GB, made once."""
    path = DATA / f"web-{name}.safetensors"
    if not path.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        pool = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
        shapes = llama(1, 256, 512, 64, 512) if SMALL else llama(layers, vocab=16_384)
        save_file({key: np.resize(pool, shape).astype(dtype) for key, shape in shapes.items()}, path)
    return path


class Server:
    """A workbench in a process of its own, and the page of it that is measured."""

    def __init__(self, process: subprocess.Popen[str], url: str, browser: Browser):
        self._process, self._url, self._browser = process, url, browser

    def open(self, heading: str) -> Page:
        """A page of a new window, once the checkpoint stands there and its search can be typed into."""
        page = self._browser.new_context().new_page()
        page.set_default_timeout(600_000)
        page.goto(self._url)
        page.get_by_role("heading", name=heading).wait_for()
        page.get_by_label("Search by pattern").first.click()
        return page

    def measure(self, job: Callable[[], None]) -> Run:
        """Run a job of the browser: its time, and the processor time and memory of the server meanwhile."""
        peak, over = 0, Event()

        def look() -> None:
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, anonymous_memory(self._process.pid))

        watch = Thread(target=look, daemon=True)
        watch.start()
        cpu, start = _cpu_seconds(self._process.pid), time.perf_counter()
        job()
        wall = time.perf_counter() - start
        over.set()
        watch.join()
        return Run(wall, _cpu_seconds(self._process.pid) - cpu, peak)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(browser: Browser, path: Path) -> Iterator[Server]:
    """A server with a checkpoint open, after one page has warmed it up."""
    with tempfile.TemporaryFile() as log:
        command = [*COMMAND, "web", path.name, "--memory", BUDGET]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            command, cwd=path.parent, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        assert process.stdout is not None
        try:
            yield Server(process, process.stdout.readline().strip(), browser)
        finally:
            process.terminate()
            process.wait()


def first_page(server: Server, path: Path) -> Run:
    """From an empty window to a page that takes a click."""
    opened: list[Page] = []
    run = server.measure(lambda: opened.append(server.open(path.name)))
    opened[0].context.close()
    return run


def in_page(server: Server, path: Path, prepare: Callable[[Page], None], act: Callable[[Page], None]) -> Run:
    """What happens in a page that is there, of a session of its own, so that nothing is known from before."""
    page = server.open(path.name)
    prepare(page)
    run = server.measure(lambda: act(page))
    page.context.close()
    return run


def search(page: Page) -> None:
    """Type a pattern, and wait for the count and the names."""
    page.get_by_label("Search by pattern").first.fill(r".*1\.weight")
    page.get_by_text(re.compile(rf"^[\d,]+ of {NAMES:,} match")).filter(has_not_text=f"{NAMES:,} of").wait_for()
    page.get_by_role("button", name=re.compile(r"1\.weight ")).first.wait_for()


def show_matrix(page: Page) -> None:
    """Open a tensor."""
    page.get_by_label("Search by pattern").first.fill(re.escape(MATRIX))
    page.get_by_role("button", name=MATRIX).first.click()
    page.get_by_role("button", name="Spectrum").wait_for()


def spectrum(page: Page) -> None:
    """Factorize it, with the values that the view computes unasked."""
    page.get_by_role("button", name="Spectrum").click()
    page.get_by_text("of the energy in").wait_for()


def statistics(page: Page) -> None:
    """Measure all tensors."""
    page.get_by_role("button", name="Health").click()
    page.get_by_text(re.compile("looks? broken")).wait_for()


def read(path: Path, *, cold: bool = False) -> Run:
    """Read a file through a small buffer, as `cat` does; `cold`: from the disk."""
    if cold:
        forget(path)
    buffer = bytearray(1 << 18)
    cpu, start = time.process_time(), time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return Run(time.perf_counter() - start, time.process_time() - cpu, 0, path.stat().st_size)


def measure_all(browser: Browser) -> Mapping[str, Run]:
    """The medians of all jobs; in turn, where they share a server."""
    found: dict[str, Run] = {}
    models = {"float32": model("f4", np.float32, 3), "bfloat16": model("bf16", ml_dtypes.bfloat16, 7)}
    for dtype, path in models.items():
        jobs: dict[str, Callable[[], Run]] = {f"reading, {dtype}": partial(read, path)}
        with serve(browser, path) as server:
            if dtype == "float32":
                jobs["first page"] = partial(first_page, server, path)
                jobs["spectrum"] = partial(in_page, server, path, show_matrix, spectrum)
            found |= alternate(jobs, repetitions())
        found |= alternate({f"statistics, {dtype}": partial(fresh_statistics, browser, path)}, repetitions())
        cold = {
            f"reading, {dtype}, cold file": partial(read, path, cold=True),
            f"statistics, {dtype}, cold file": partial(fresh_statistics, browser, path, cold=True),
        }
        found |= alternate(cold, repetitions())
    names = hollow(DATA / f"hollow-{NAMES}.safetensors", NAMES)
    with serve(browser, names) as server:
        jobs = {"search": partial(in_page, server, names, lambda page: None, search)}
        jobs["first page, many names"] = partial(first_page, server, names)
        return found | alternate(jobs, repetitions())


def fresh_statistics(browser: Browser, path: Path, *, cold: bool = False) -> Run:
    """The statistics of a server that has computed others: it keeps what it found, also for other windows. `cold`: the
    file is on the disk alone."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        warm = Path(folder, "warm.safetensors")
        save_file({"x": np.ones((64, 64), ml_dtypes.bfloat16 if "bf16" in path.name else np.float32)}, warm)
        os.link(path, Path(folder, path.name))
        with serve(browser, warm) as server:
            page = server.open(warm.name)
            statistics(page)
            page.get_by_label("Path of a checkpoint").fill(path.name)
            page.get_by_role("button", name="Open", exact=True).first.click()
            page.get_by_role("heading", name=path.name).wait_for()
            page.get_by_role("button", name="Close").first.click()
            page.get_by_role("heading", name=warm.name).wait_for(state="detached")
            if cold:
                forget(path)
            run = server.measure(lambda: statistics(page))
            page.context.close()
            return run._replace(moved=path.stat().st_size)


def figures(name: str, run: Run) -> dict[str, Any]:
    """A job as the table shows it."""
    return {
        "kind": "peer" if name.startswith("reading") else "ours", "wall_s": round(run.wall, 3),
        "cpu_s": round(run.cpu, 3), "anonymous_mb": round(run.anonymous / 1e6, 1),
        "moved_gb": round(run.moved / 1e9, 4), "gb_per_s": round(run.moved / 1e9 / run.wall, 2),
    }  # fmt: skip


if __name__ == "__main__":
    compile_package()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = measure_all(browser)
    jobs = {name: figures(name, run) for name, run in found.items()}
    conclude("web", f"looking at 1 GB and at {NAMES:,} names in a browser", jobs, {})
