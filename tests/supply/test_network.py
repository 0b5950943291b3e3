"""Nothing of ours, and nothing that we load, talks to the network; `web` listens to this machine alone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from brainsurgery_jax.cli.app import app
from tests.cli.conftest import ROOT, environment
from tests.supply.guarded import COMMANDS

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system must watch over sockets")


def guarded(place: Path, what: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tests.supply.guarded", what]
    return subprocess.run(line, cwd=place, env=environment(HOME=str(place)), capture_output=True, text=True)


def test_the_commands_that_are_tried_are_all_there_are():
    assert {*COMMANDS, "web"} == {command.name for command in app.registered_commands}


@LINUX
def test_an_internet_socket_kills_a_guarded_process(tmp_path: Path):
    code = "import socket; from tests.supply.guarded import forbid_internet as f; f(); socket.socket(socket.AF_UNIX)"
    line = [sys.executable, "-c", f"{code}; print('unix'); import sys; sys.stdout.flush(); socket.socket()"]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, "unix\n")


def test_no_command_makes_an_internet_socket(tmp_path: Path):
    done = guarded(tmp_path, "commands")
    assert done.returncode == 0, done.stderr[-2000:]
    codes = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    # `diff` finds a difference, and `compare-logits` and `audit` say what they miss.
    assert codes == dict.fromkeys(COMMANDS, "0") | {"diff": "1"} | {n: codes[n] for n in ("compare-logits", "audit")}


def test_no_call_of_the_python_interface_makes_an_internet_socket(tmp_path: Path):
    done = guarded(tmp_path, "calls")
    assert (done.returncode, done.stdout) == (0, "called\n"), done.stderr[-2000:]


HEAR = """
import sys
def hear(event, given):
    if event in ("socket.bind", "socket.connect", "socket.getaddrinfo"):
        with open("heard", "a") as file:
            print(event, given[1] if event != "socket.getaddrinfo" else given[:2], file=file)
sys.addaudithook(hear)
from brainsurgery_jax.cli.app import main
sys.argv = ["brainsurgery-jax", "web", "--port", "0"]
main()
"""


def test_the_workbench_binds_loopback_alone_and_connects_to_nothing(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HEAR], cwd=tmp_path, env=environment(HOME=str(tmp_path)),
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert process.stdout is not None
    with process, process.stdout as out:
        try:
            url = out.readline().strip()
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with browser.open(url, timeout=120) as page:
                assert page.status == 200
        finally:
            process.terminate()
    heard = (tmp_path / "heard").read_text().splitlines()
    assert any(line.startswith("socket.bind") for line in heard)
    places = [re.search(r"'([^']*)'", line) for line in heard if "''" not in line]
    assert {"127.0.0.1"} <= {place[1] for place in places if place} <= {"127.0.0.1", "::1"}
    assert not [line for line in heard if line.startswith("socket.connect")]


FILES = ("ops.py", "my_ops.py", "brainsurgery_ops.py", "numpy.py", "yaml.py", "sitecustomize.py", "modeling_model.py")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with a plan, and a model beside it, both with Python files that leave a trace when they run."""
    from tests.checkpoints import counting, write

    for folder in (tmp_path, tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        for name in FILES:
            (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('ran')\n")
    write(tmp_path / "model/model.safetensors", {"w": counting((2, 2))})
    (tmp_path / "model/config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "modeling_model.M"}}')
    (tmp_path / "plan.yaml").write_text("inputs: [model]\ntransforms: [{scale_: {target: w, by: 2}}]\noutput: out/\n")
    return tmp_path


def script(place: Path, *words: str) -> int:
    """The exit code of the command as it is installed."""
    code = "import sys; from brainsurgery_jax.cli.app import main; sys.exit(main())"
    line = [sys.executable, "-P", "-c", code, *words]
    return subprocess.run(line, cwd=place, env=environment(), capture_output=True).returncode


def test_no_python_file_beside_a_plan_or_a_model_runs_unasked(trapped: Path):
    assert [script(trapped, "check", "plan.yaml"), script(trapped, "run", "plan.yaml")] == [0, 0]
    assert not (trapped / "ran").exists()


def test_a_file_of_ops_runs_when_it_is_named(trapped: Path):
    script(trapped, "check", "plan.yaml", "--ops", "my_ops.py")
    assert (trapped / "ran").read_text() == "ran"


def test_no_module_of_ours_imports_a_client_of_the_network():
    """What sends must first connect."""
    clients = re.compile(
        r"^\s*(?:import|from) (?:requests|httpx|urllib\.request|aiohttp|http\.client|smtplib|ftplib)\b", re.MULTILINE
    )
    assert not [path for path in (ROOT / "brainsurgery_jax").rglob("*.py") if clients.search(path.read_text())]
