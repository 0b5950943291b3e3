"""The server in a process of its own, as a user starts it, and a plain HTTP client."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from brainsurgery_jax.web.workbench import Workbench

HOSTILE = "<img src=x onerror=alert(1)>"


SHOTS = os.environ.get("BRAINSURGERY_SCREENSHOTS", "")
"""A folder for pictures of the main views; none are made without it."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Server(NamedTuple):
    url: str
    root: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def token(self) -> str:
        return urlsplit(self.url).query.removeprefix("token=")

    @property
    def cookie(self) -> str:
        return f"brainsurgery_jax_{self.port}={self.token}"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str | None) -> Answer:
        """Ask with the cookie and the right Host; None leaves a header out."""
        given = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie}
        given |= {key.replace("_", "-"): value for key, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for key, value in given.items():
                if value is not None:
                    connection.putheader(key, value)
            if body is not None and "Content-Length" not in given:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            if body is not None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(body)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def open_page(self) -> str:
        """The HTML of a new workbench."""
        where = self.ask("/").headers["location"]
        answer = self.ask(where)
        assert answer.status == 200
        return answer.body.decode()


def write_model(path: Path) -> None:
    rng = np.random.default_rng(0)
    made = {"wte.weight": rng.normal(size=(16, 8)).astype("f4"), HOSTILE: np.ones(3, "f4")}
    for layer in range(3):
        made[f"h.{layer}.attn.weight"] = rng.normal(size=(8, 8)).astype("f4")
        made[f"h.{layer}.mlp.weight"] = rng.normal(size=(8, 32)).astype("f4")
        made[f"h.{layer}.mlp.bias"] = rng.normal(size=(32,)).astype("f4")
    save_file(made, path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on loopback whose root holds a model; beside the root lies a file that nobody may see."""
    pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")
    top = tmp_path_factory.mktemp("web")
    root = top / "root"
    root.mkdir()
    write_model(root / "model.safetensors")
    write_model(top / "secret.safetensors")
    (root / "link.safetensors").symlink_to(top / "secret.safetensors")
    (root / "away").symlink_to(top)
    command = [sys.executable, "-m", "brainsurgery_jax", "web", "model.safetensors", "--upload-limit", "1MB"]
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with open(top / "log", "w") as log:
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), (top / "log").read_text()
        yield Server(url, root, process)
        process.terminate()
        process.wait(180)
        process.stdout.close()


def chromium() -> str | None:
    """The path of a chromium of the system; None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A chromium for all tests of this process."""
    pytest.importorskip("playwright", reason="NO BROWSER TEST: Playwright is not installed (make venv installs it)")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"NO BROWSER TEST: `apt-get install chromium` or `playwright install chromium`: {error}")
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a context of its own: other cookies, another cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(180_000)  # a loaded machine is slow: no test may fail for it
    yield page
    context.close()


def take_picture(page: Page, name: str) -> None:
    if SHOTS:
        page.evaluate("window.scrollTo(0, 0)")  # the header stays where the window begins
        wait_until_still(page)
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def wait_until_still(page: Page) -> None:
    """Wait until nothing moves: panels slide in, and messages go."""
    # A cursor blinks for ever.
    moves = "one.playState === 'running' && one.effect.getComputedTiming().endTime !== Infinity"
    page.wait_for_function(f"!document.getAnimations().some((one) => {moves})")


def turn_to(page: Page, view: str) -> None:
    """Turn to a view, and wait until the one before has left: a view that turns back while it leaves is put into the
    page anew, and what had the focus in it has lost it."""
    page.get_by_role("tab", name=view).click()
    page.wait_for_function(
        """(view) => document.querySelectorAll('.nicegui-tab-panel').length === 1
            && document.querySelector('[role=tab][aria-selected=true]').innerText === view""",
        arg=view,
    )
    wait_until_still(page)


def write_plan(page: Page, text: str) -> None:
    """Type a plan in place of what is in the editor."""
    editor = page.locator(".cm-content")
    editor.click()
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)


def add_input(bench: Workbench, path: str) -> str:
    """Make a checkpoint an input of the plan; its alias."""
    text, alias, _ = bench.with_input(bench.text, path)
    bench.write(text)
    return alias
