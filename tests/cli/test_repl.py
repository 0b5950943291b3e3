"""The prompt on a real terminal: keys go in, and what counts is what a person sees, and what lies in the folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import read
from tests.cli.conftest import Command, environment
from tests.cli.screen import Screen

IDLE = "| Tab completes |"  # in the line below a prompt with nothing typed
ENTER, TAB, CTRL_C, CTRL_D, UP = "\r", "\t", "\x03", "\x04", "\x1b[A"

# An assert that takes as long as a file is missing, so that nothing here depends on the speed of the machine.
SLOW = '''
from pathlib import Path
from time import sleep
from brainsurgery_jax.op import SlicedPattern, assertion
from brainsurgery_jax.protocol import Known, Pending, Reduction, Verdict, View

def wait(x):
    Path("started").touch()
    while not Path("go").exists():
        sleep(0.01)
    return 0

@assertion()
def waits(view: View, *, of: SlicedPattern) -> Verdict:
    """Holds once there is a file `go`.

    Example: `assert: {waits: {of: ids}}`
    """
    (item,) = view.select(of, "of")
    return Pending((item.expr,), Reduction(wait, max, int, 0), lambda _: Known(True))
'''

Open = Callable[..., Screen]


@pytest.fixture
def prompt(place: Path) -> Iterator[Open]:
    """Opens a prompt with these words behind `repl`, and waits for it."""
    opened: list[Screen] = []

    def start(*words: str, verb: str = "repl", **env: str) -> Screen:
        line = [sys.executable, "-m", "brainsurgery_jax", verb, *words]
        more = {"TERM": "xterm-256color", "XDG_STATE_HOME": str(place / "state"), "NO_COLOR": ""}
        opened.append(Screen(line, place, environment(**(more | env))))
        opened[-1].until("brainsurgery>")
        return opened[-1]

    yield start
    for screen in opened:
        screen.close()


def idle(screen: Screen) -> str:
    """Wait for a prompt with nothing behind it."""
    return screen.until(lambda seen: IDLE in seen)


def said(screen: Screen, text: str, answer: str) -> str:
    """Type a line, and wait for an answer and the next prompt."""
    idle(screen)
    screen.keys(text + ENTER)
    return screen.until(lambda seen: answer in seen and IDLE in seen)


def test_a_session_from_the_first_key_to_the_same_bytes_from_its_plan(prompt: Open, command: Command, place: Path):
    screen = prompt("base.safetensors")
    screen.until("model:: 3 tensors")

    screen.keys("mo")
    screen.until(r"move +Rename tensors")
    screen.keys(TAB)
    screen.until("brainsurgery> move:")
    screen.keys("from: h.")
    screen.until(r"h\.0\.w +f32\[2,3\]")
    screen.keys(TAB)
    screen.until(r"from: h\.0\.w")
    screen.keys(", to: x")
    screen.until("creates 1: x; deletes 1: h.0.w")
    screen.keys(ENTER)
    screen.until("created 1: x; deleted 1: h.0.w")

    idle(screen)
    screen.keys("copy: from: hh.1.w, to: y" + ENTER)
    seen = screen.until(r"\[no-match\]")
    rows = seen.split("\n")
    at = next(i for i, row in enumerate(rows) if row.endswith("copy: from: hh.1.w, to: y"))
    assert rows[at + 1].index("^") == rows[at].index("hh.1.w")
    assert "Did you mean 'h.1.w'?" in seen

    said(screen, "delete: target: ids", "deleted 1: ids")
    said(screen, "undo", "undone: delete; 1 step left")
    said(screen, "scale_: target: x, by: 0.3", "changed 1: x")
    said(screen, "save: one.safetensors", "wrote one.safetensors: 3 tensors")
    said(screen, "save-plan session.yaml", "wrote session.yaml: 3 steps")
    screen.keys(CTRL_D)
    assert screen.end() == 0

    (place / "one.safetensors").rename(place / "before.safetensors")
    assert command("run", "session.yaml").code == 0
    assert (place / "one.safetensors").read_bytes() == (place / "before.safetensors").read_bytes()


def test_tab_goes_on_as_far_as_there_is_one_way_to(prompt: Open):
    screen = prompt("base.safetensors")
    screen.keys("dele" + TAB)
    screen.until("brainsurgery> delete:")
    screen.until(r"target +tensors, by pattern")
    screen.keys("t" + TAB + "i" + TAB)
    screen.until("deletes 1: ids")
    screen.keys(ENTER)
    screen.until("deleted 1: ids")


def test_tab_inserts_what_all_candidates_share_then_walks_through_them(prompt: Open):
    screen = prompt("base.safetensors")
    screen.keys("delete: target: h" + TAB)
    screen.until(r"target: h\.$")
    screen.keys(TAB)
    screen.until(r"target: h\.0\.w$")
    screen.keys(TAB)
    screen.until(r"target: h\.1\.w$")


def test_ctrl_c_stops_the_step_that_runs_and_nothing_else(prompt: Open, place: Path):
    (place / "slow.py").write_text(SLOW)
    screen = prompt("base.safetensors", "--ops", "slow.py")
    said(screen, "delete: target: h.0.w", "deleted 1: h.0.w")
    screen.keys("assert: waits: {of: ids}" + ENTER)
    screen.until(lambda _: (place / "started").exists())
    screen.keys(CTRL_C)
    screen.until(r"\^C")  # the terminal echoes it as it sends the signal: the step may not end before
    (place / "go").touch()
    screen.until("interrupted: the session is as it was before the step")
    seen = said(screen, "show", "# model:: 2 tensors")
    assert "waits" not in seen.rpartition("transforms:")[2]
    said(screen, "delete: target: ids", "deleted 1: ids")


def test_ctrl_c_drops_what_is_typed(prompt: Open):
    screen = prompt("base.safetensors")
    screen.keys("delete: target: ids")
    screen.until("deletes 1: ids")
    screen.keys(CTRL_C)
    screen.until(lambda seen: seen.count("brainsurgery>") == 2 and IDLE in seen)
    assert "# model:: 3 tensors" in said(screen, "show", "transforms: []")


def test_a_block_of_several_lines_ends_with_an_empty_one(prompt: Open):
    screen = prompt("base.safetensors")
    screen.keys("delete:" + ENTER)
    screen.until(r"^ +\.\.\.")
    screen.keys("target: ids" + ENTER)
    screen.until("deletes 1: ids")
    screen.keys(ENTER)
    screen.until("deleted 1: ids")


def test_brackets_may_go_over_several_lines(prompt: Open):
    screen = prompt("base.safetensors")
    screen.keys("delete: {" + ENTER)
    screen.until(r"^ +\.\.\.")
    screen.keys("target: ids}" + ENTER)
    screen.until("deleted 1: ids")


def test_a_mistake_in_a_block_is_shown_with_its_line(prompt: Open):
    screen = prompt("base.safetensors")
    screen.keys("delete:" + ENTER + "target: idz" + ENTER + ENTER)
    seen = screen.until(r"\[no-match\]").split("\n")
    at = next(i for i, row in enumerate(seen) if row.strip() == "^")
    assert seen[at - 1][seen[at].index("^") :] == "idz"


def test_history_is_kept_for_the_next_session_and_for_no_one_else(prompt: Open, place: Path):
    first = prompt("base.safetensors")
    said(first, "delete: target: ids", "deleted 1: ids")
    first.keys("abort" + ENTER)
    assert first.end() == 0
    (file,) = (place / "state").rglob("history")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    second = prompt("base.safetensors")
    second.keys(UP)
    second.until("brainsurgery> abort")
    second.keys(UP)
    second.until("brainsurgery> delete: target: ids")


@pytest.mark.parametrize("broken", [b"\xff\xfe", b"not ours\n"])
def test_a_broken_history_is_told_and_left_alone(prompt: Open, place: Path, broken: bytes):
    file = place / "state" / "brainsurgery-jax" / "history"
    file.parent.mkdir(parents=True)
    file.write_bytes(broken)
    screen = prompt("base.safetensors")
    screen.until("is not a history file")
    said(screen, "delete: target: ids", "deleted 1: ids")
    assert file.read_bytes() == broken


def test_a_history_that_cannot_be_kept_is_told(prompt: Open, place: Path):
    (place / "state").write_text("a file where a folder should be")
    screen = prompt("base.safetensors")
    screen.until("the history cannot be saved: Not a directory")


def test_the_output_of_the_plan_is_written_at_the_end(prompt: Open, place: Path):
    screen = prompt("plan.yaml")
    said(screen, "delete: target: ids", "deleted 1: ids")
    assert not (place / "out.safetensors").exists()
    screen.keys(CTRL_D)
    assert screen.end() == 0
    assert "wrote out.safetensors: 2 tensors" in screen.text
    assert set(read(place / "out.safetensors")) == {"layer.0.w", "layer.1.w"}


def test_run_with_i_opens_the_prompt_after_the_plan(prompt: Open, place: Path):
    screen = prompt("-i", "plan.yaml", verb="run")
    idle(screen)
    screen.keys("exit" + ENTER)
    assert screen.end() == 0
    assert set(read(place / "out.safetensors")) == {"layer.0.w", "layer.1.w", "ids"}


def test_abort_leaves_without_writing(prompt: Open, place: Path):
    screen = prompt("plan.yaml")
    idle(screen)
    screen.keys("abort" + ENTER)
    assert screen.end() == 0
    assert not (place / "out.safetensors").exists()


def test_an_output_that_cannot_be_written_keeps_the_session_open(prompt: Open, place: Path):
    (place / "out.safetensors").write_bytes(b"precious")
    screen = prompt("plan.yaml")
    idle(screen)
    assert "exists" in screen.text
    screen.keys(CTRL_D)
    screen.until(lambda seen: seen.count("brainsurgery>") == 2 and IDLE in seen)
    screen.keys("abort" + ENTER)
    assert screen.end() == 0
    assert (place / "out.safetensors").read_bytes() == b"precious"


def test_steps_that_would_be_lost_are_told_once(prompt: Open):
    screen = prompt("base.safetensors")
    said(screen, "delete: target: ids", "deleted 1: ids")
    screen.keys(CTRL_D)
    screen.until(lambda seen: "1 step would be lost" in seen and seen.count("brainsurgery>") == 3 and IDLE in seen)
    screen.keys(CTRL_D)
    assert screen.end() == 0


def test_the_step_exit_leaves_as_the_command_does_and_the_session_goes_on_till_then(prompt: Open):
    screen = prompt("base.safetensors")
    said(screen, "delete: target: ids", "deleted 1: ids")
    screen.keys("exit: {}" + ENTER)
    screen.until(lambda seen: "1 step would be lost" in seen and IDLE in seen)
    said(screen, "undo", "undone: delete")


def test_no_plan_is_written_over_a_file_that_was_there(prompt: Open, place: Path):
    before = (place / "base.safetensors").read_bytes()
    screen = prompt("base.safetensors")
    said(screen, "save-plan base.safetensors", "exists already, and no plan is written over it")
    assert (place / "base.safetensors").read_bytes() == before
    said(screen, "save-plan mine.yaml", "wrote mine.yaml: 0 steps")
    said(screen, "delete: target: ids", "deleted 1: ids")
    said(screen, "save-plan mine.yaml", "wrote mine.yaml: 1 step")


def test_no_plan_is_written_over_a_checkpoint_though_files_may_be_replaced(prompt: Open, place: Path):
    before = (place / "base.safetensors").read_bytes()
    screen = prompt("base.safetensors", "--overwrite")
    said(screen, "save-plan base.safetensors", "is no plan, and a plan replaces nothing else")
    assert (place / "base.safetensors").read_bytes() == before


@pytest.mark.parametrize(("answer", "left"), [("go", 2), ("", 3), ("no-go", 3)])
def test_with_preview_each_step_asks_first(prompt: Open, answer: str, left: int):
    screen = prompt("base.safetensors", "--preview")
    idle(screen)
    screen.keys("delete: target: ids" + ENTER)
    screen.until(r"preview: deleted 1: model::ids\n.*go\?")
    screen.keys(answer + ENTER)
    said(screen, "show", f"# model:: {left} tensors")


def test_the_first_load_needs_no_alias_afterwards(prompt: Open):
    screen = prompt()
    screen.until("`load: PATH` opens a checkpoint")
    screen.keys("load: base")
    screen.until(r"base\.safetensors")
    screen.keys(TAB)
    screen.until("opens base.safetensors")
    screen.keys(ENTER)
    screen.until("opened base.safetensors: model:: 3 tensors")
    said(screen, "delete: target: ids", "deleted 1: ids")


def test_a_dumb_terminal_has_a_plain_prompt(prompt: Open):
    screen = prompt("base.safetensors", TERM="dumb")
    screen.keys("delete: target: ids" + ENTER)
    screen.until("deleted 1: ids")
    assert b"\x1b[" not in screen.raw


def test_no_colour_is_used_where_none_is_wanted(prompt: Open):
    screen = prompt("base.safetensors", NO_COLOR="1")
    said(screen, "delete: target: idz", "no tensor matches")
    assert not any(code in screen.raw for code in (b"[31m", b"[32m", b"[36m", b"[38;", b";36m", b";32m", b";31m"))


# --- Without a terminal


def piped(place: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "brainsurgery_jax", "repl", *words]
    env = environment(XDG_STATE_HOME=str(place / "state"))
    return subprocess.run(line, cwd=place, env=env, input=text, capture_output=True, text=True)


def test_steps_from_a_pipe_are_done_without_a_prompt(place: Path):
    text = "# names first\ndelete: target: ids\n\ncopy:\n  from: layer.0.w\n  to: x\ndump: target: x, format: json\n"
    done = piped(place, text, "plan.yaml")
    assert (done.returncode, done.stdout) == (0, '{"x":{"shape":[2,3]}}\n')
    assert done.stderr == "wrote out.safetensors: 3 tensors, 72 B\n"
    assert set(read(place / "out.safetensors")) == {"layer.0.w", "layer.1.w", "x"}
    assert not (place / "state").exists()


@pytest.mark.parametrize(
    ("text", "place_of_it", "code"),
    [
        ("delete: target: ids\n\ndelete: target: idz\ndelete: target: x\n", "<stdin>:3:17:", 1),
        ("copy:\n  from: ids\n  too: x\n", "<stdin>:3:8:", 1),
        ("dump\nload: path: none.safetensors, alias: x\n", "<stdin>:2:13:", 3),
        ("assert: iszero: ids", "<stdin>:1:1:", 1),
        ("dump\nundo it\n", "<stdin>:2:1: undo takes nothing", 1),
        ("dump\nquit\n", "<stdin>:2:1: 'quit' is neither an op nor a command. Did you mean 'exit'?", 1),
        (" undoo\n", "<stdin>:1:2: 'undoo' is neither an op nor a command. Did you mean 'undo'?", 1),
    ],
)
def test_the_first_mistake_in_a_pipe_ends_it_and_nothing_is_written(
    place: Path, text: str, place_of_it: str, code: int
):
    done = piped(place, text, "plan.yaml")
    assert done.returncode == code
    assert place_of_it in done.stderr
    assert not (place / "out.safetensors").exists()


def test_mistakes_of_the_plan_itself_are_all_told_before_anything_is_read(place: Path):
    done = piped(place, "dump\n", "plan.yaml", "transforms[2]={delete: {target: none}}", "transforms[3]=nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no tensor matches 'none'" in done.stderr
    assert "unknown op 'nonsense'" in done.stderr


def test_a_preview_tells_each_step_of_the_plan_and_each_that_is_piped_in(place: Path):
    done = piped(place, "delete: target: ids\nsave: x.safetensors\n", "plan.yaml", "--preview", "-q")
    assert done.stderr.splitlines() == [
        "preview 1/2 move: created 2: base::layer.0.w, base::layer.1.w; deleted 2: base::h.0.w, base::h.1.w",
        "preview 2/2 assert: no tensor changes",
        "preview: deleted 1: base::ids",
        "preview: writes x.safetensors",
    ]


def test_a_dry_run_computes_and_writes_nothing(place: Path):
    done = piped(place, "save: x.safetensors\nassert: iszero: layer.1.w\n", "plan.yaml", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "dry run: nothing was written\n")
    assert not list(place.glob("[ox]*.safetensors"))


def test_several_checkpoints_are_opened_under_the_names_of_their_files(place: Path):
    os.link(place / "base.safetensors", place / "tuned.safetensors")
    done = piped(place, "show\n", "base.safetensors", "tuned.safetensors", "t::tuned.safetensors")
    assert done.stdout.startswith("# base:: 3 tensors, tuned:: 3 tensors, t:: 3 tensors\n")


def test_only_the_prompt_loads_its_library(loaded: Callable[..., set[str]]):
    assert "prompt_toolkit" not in loaded("--help") | loaded("repl", "--help") | loaded("inspect", "base.safetensors")
