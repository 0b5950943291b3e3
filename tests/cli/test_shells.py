"""What a shell completes: asked as its script asks, and typed into real shells."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from select import select

import numpy as np
import pytest

from tests.checkpoints import write
from tests.cli.conftest import ROOT, environment
from tests.cli.screen import PATIENCE_S

PLAN = """\
inputs: [base::base.safetensors]
vars: {rank: 16}
transforms:
  - phlora: {target: '(.*)\\.w', target_a: '\\1.A', target_b: '\\1.B', rank: '${vars.rank}'}
  - scale_: {target: '${vars.what}', by: 0.5}
output: {path: out/, overwrite: false}
"""

# Completes as the installed command does; called otherwise, it leaves behind what it was called with.
COMMAND = f"""\
#!{sys.executable}
import json, os, sys
if "_BRAINSURGERY_JAX_COMPLETE" in os.environ:
    sys.path.insert(0, {str(ROOT)!r})
    from brainsurgery_jax.cli.app import main
    main()
with open("called.new", "w") as file:
    json.dump(sys.argv[1:], file)
os.replace("called.new", "called.json")
"""


@pytest.fixture
def desk(place: Path) -> Path:
    """A folder with plans, a checkpoint and the command, on the PATH from `bin`."""
    (place / "plan.yaml").write_text(PLAN)
    (place / "more" / "deep").mkdir(parents=True)
    (place / "more" / "deep" / "other.yml").write_text("seed: 1\n")
    (place / "my_ops.py").write_text((ROOT / "tests/user_ops/my_ops.py").read_text())
    (place / "bin").mkdir()
    command = place / "bin" / "brainsurgery-jax"
    command.write_text(COMMAND)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return place


Ask = Callable[..., list[str]]


@pytest.fixture
def ask(desk: Path) -> Ask:
    """The words that bash is told for a line; its own cuts at `=` are made by hand."""

    def asked(line: str) -> list[str]:
        words = line.split()
        at = len(words) + (line.endswith(" ") or not line)
        given = {"COMP_WORDS": f"brainsurgery-jax {line}", "COMP_CWORD": str(at)}
        done = subprocess.run(
            [desk / "bin/brainsurgery-jax"], cwd=desk, capture_output=True, text=True,
            env=environment(_BRAINSURGERY_JAX_COMPLETE="complete_bash", **given),
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    return asked


# --- Words ------------------------------------------------------------------------------------------------------------


def test_commands_and_plans_come_first(ask: Ask):
    assert {"run", "check", "inspect", "ops", "plan.yaml"} <= set(ask(""))


def test_the_start_of_a_plan_is_completed_without_a_command(ask: Ask):
    assert ask("pl") == ["plan.yaml"]


def test_folders_that_are_alone_are_opened(ask: Ask):
    assert ask("run mor") == ["more/deep/other.yml"]


def test_a_plan_stands_on_the_line_once(ask: Ask):
    assert "plan.yaml" not in ask("check plan.yaml ")


@pytest.mark.parametrize("start", ["", "run ", "check ", "explain "])
def test_the_keys_of_the_plan_may_be_overridden(ask: Ask, start: str):
    keys = {word for word in ask(f"{start}plan.yaml ") if word.endswith("=")}
    assert keys >= {"inputs[0]=", "transforms[0].phlora.rank=", "transforms[1].scale_.by=", "output.path=", "seed="}


def test_variables_are_completed_whether_set_or_only_used(ask: Ask):
    assert ask("plan.yaml vars.") == ["vars.rank=", "vars.what="]


def test_a_key_that_is_alone_comes_with_its_value_so_that_no_space_follows(ask: Ask):
    assert ask("plan.yaml transforms[1].scale_.b") == ["transforms[1].scale_.by=", "transforms[1].scale_.by=0.5"]


def test_keys_of_all_plans_on_the_line_are_known(ask: Ask):
    assert ask("plan.yaml more/deep/other.yml se") == ["seed=", "seed=1"]


def test_the_value_of_the_plan_follows_the_equals_sign(ask: Ask):
    assert ask("plan.yaml vars.rank=") == ["vars.rank=16"]  # as zsh and fish have it
    assert ask("plan.yaml vars.rank =") == ["16"]  # as bash cuts it
    assert ask("plan.yaml vars.rank = 1") == ["16"]


def test_recipes_are_completed_and_then_their_variables(ask: Ask):
    assert ask("run rec") == ["recipe:", "recipe:..."]
    assert ask("run recipe:merge-ti") == ask("recipe:merge-ti") == ["recipe:merge-ties"]  # as zsh and fish have it
    assert ask("run recipe : merge-ti") == ask("recipe : merge-ti") == ["merge-ties"]  # as bash cuts it
    assert ask("run recipe:merge-ties den") == ["density=", "density=0.5"]
    assert ask("run recipe : merge-ties density = ") == ["0.5"]
    assert {"base=", "models=", "out="} <= set(ask("run recipe:merge-ties "))
    assert ask("recipes merge-ti") == ["merge-ties"]


def test_true_and_false_follow_a_switch(ask: Ask):
    assert ask("plan.yaml output.overwrite = ") == ["true", "false"]


def test_of_very_many_keys_their_first_parts_are_offered(ask: Ask, desk: Path):
    steps = "".join(f"  - scale_: {{target: x{i}, by: 2}}\n" for i in range(60))
    (desk / "long.yaml").write_text(f"transforms:\n{steps}")
    assert "transforms[7]." in ask("long.yaml tr")
    assert ask("long.yaml transforms[7].") == ["transforms[7].scale_.target=", "transforms[7].scale_.by="]


def test_ops_and_asserts_are_completed(ask: Ask):
    assert ask("ops phl") == ["phlora", "phlora_"]
    assert "assert.equal" in ask("ops assert.")


def test_ops_of_the_users_files_are_completed(ask: Ask):
    assert ask("ops --ops my_ops.py soft") == ["soft_cap", "soft_cap_"]


def test_files_of_ops_are_completed(ask: Ask):
    assert ask("ops --ops my") == ["my_ops.py"]


def test_layouts_and_their_libraries_are_completed(ask: Ask):
    assert {"tunix", "tunix-llama"} <= set(ask("convert a b --layout tun"))
    assert {"check", "flax-gpt2"} <= set(ask("layouts "))
    assert "check" not in ask("layouts check ")


def test_formats_and_dtypes_are_completed(ask: Ask):
    assert ask("convert a b --to orb") == ["orbax"]
    assert ask("convert a b --dtype bfl") == ["bfloat16"]


def test_tensors_of_the_checkpoint_are_completed(ask: Ask):
    assert ask("inspect base.safetensors --target h.") == ["h.0.w", "h.1.w"]
    assert ask("diff base.safetensors none --target h.") == ["h.0.w", "h.1.w"]


def test_of_very_many_tensors_the_next_parts_of_their_names_are_offered(ask: Ask, desk: Path):
    names = [f"model.layers.{i}.{part}.weight" for i in range(12) for part in "abcd"]
    write(desk / "many.safetensors", {name: np.zeros(1, np.float32) for name in names})
    assert ask("inspect many.safetensors --target mod") == [f"model.layers.{i}." for i in range(12)]


def test_options_are_completed(ask: Ask):
    assert ask("inspect base.safetensors --for") == ["--format"]
    assert set(ask("inspect base.safetensors --format ")) == {"compact", "tree", "json"}


@pytest.mark.parametrize(
    "line",
    ["nonsense ", "run none.yaml ", "inspect none --target x", "ops --ops none.py ", "run plan.yaml a=b=c", "inspect "],
)
def test_where_nothing_can_be_known_nothing_is_said(ask: Ask, line: str):
    assert [word for word in ask(line) if not word.endswith("/") and word != "plan.yaml"] == []


def test_a_broken_plan_says_nothing_either(ask: Ask, desk: Path):
    (desk / "plan.yaml").write_text("a: [")
    assert ask("plan.yaml vars") == []


def test_words_that_a_shell_would_read_otherwise_are_left_out(ask: Ask, desk: Path):
    (desk / "odd name$.yaml").write_text("")
    assert ask("odd") == []


LOADED = """
import sys
from brainsurgery_jax.cli import shells
shells.complete(sys.argv[1], {"items": ["plan.yaml"], "checkpoint": "base.safetensors"}, "")
print(*[m for m in ("jax", "numpy", "pydantic", "torch") if m in sys.modules])
"""


@pytest.mark.parametrize("what", ["first word", "items", "op", "layout", "layouts", "format", "dtype", "tensor"])
def test_completion_loads_neither_jax_nor_numpy(desk: Path, what: str):
    done = subprocess.run([sys.executable, "-c", LOADED, what], cwd=desk, env=environment(), capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert set(done.stdout.split()) <= ({"pydantic"} if what == "op" else set())


# --- Real shells ------------------------------------------------------------------------------------------------------

PROMPT = "ready>"
START = {
    "bash": (["--norc", "--noprofile", "-i"], f"PS1='{PROMPT} '; bind 'set enable-bracketed-paste off'; . ./script\n"),
    "zsh": (["-f", "-i"], f"PS1='{PROMPT} '; autoload -Uz compinit; compinit -u -D; . ./script\n"),
    "fish": (["--no-config", "-i"], f"source script; function fish_prompt; echo '{PROMPT} '; end\n"),
}
TYPED = {
    "insp": ["inspect"],
    "pl": ["plan.yaml"],
    "check mor": ["check", "more/deep/other.yml"],
    "plan.yaml transforms[1].scale_.b": ["plan.yaml", "transforms[1].scale_.by="],
    "plan.yaml vars.rank=": ["plan.yaml", "vars.rank=16"],
    "run recipe:merge-ti": ["run", "recipe:merge-ties"],
    "run recipe:merge-ties dens": ["run", "recipe:merge-ties", "density="],
    "inspect base.saf": ["inspect", "base.safetensors"],
    "inspect base.safetensors --target i": ["inspect", "base.safetensors", "--target", "ids"],
}


class Shell:
    """A shell in a terminal of its own, with the command's script in it."""

    def __init__(self, name: str, desk: Path):
        variables = environment(HOME=str(desk), PATH=f"{desk / 'bin'}:{os.environ['PATH']}", TERM="dumb")
        asking = variables | {"_BRAINSURGERY_JAX_COMPLETE": f"source_{name}"}
        with (desk / "script").open("w") as script:
            subprocess.run([desk / "bin/brainsurgery-jax"], env=asking, stdout=script, check=True)
        self.called = desk / "called.json"
        options, start = START[name]
        # A terminal is made by a process of its own: this one may have loaded JAX, and must not fork.
        line = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", name, *options]
        self.process = subprocess.Popen(line, cwd=desk, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.type(start)
        self.wait(
            lambda shown: shown.endswith(f"\r{PROMPT} ") or f"\r{PROMPT} \x1b" in shown or f"\n{PROMPT} " in shown
        )

    def type(self, keys: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(keys.encode())
        self.process.stdin.flush()

    def wait(self, done: Callable[[str], bool]) -> None:
        shown, end = "", time.monotonic() + PATIENCE_S
        while not done(shown):
            assert time.monotonic() < end, shown
            assert self.process.stdout is not None
            if select([self.process.stdout], [], [], 0.02)[0]:
                shown += os.read(self.process.stdout.fileno(), 65536).decode(errors="replace")

    def after_tab(self, line: str) -> list[str]:
        """The arguments with which the command is called by `line`, a Tab, and Enter."""
        self.type(f"brainsurgery-jax {line}\t\r")
        self.wait(lambda _: self.called.exists())
        arguments = json.loads(self.called.read_text())
        self.called.unlink()
        return arguments

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("name", START)
def test_a_tab_in_a_real_shell(desk: Path, name: str):
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here (Debian: apt-get install {name}); what it is told is tested above")
    shell = Shell(name, desk)
    try:
        assert {line: shell.after_tab(line) for line in TYPED} == TYPED
    finally:
        shell.close()


def test_the_script_can_be_installed_from_a_shell(desk: Path):
    asked = [sys.executable, "-m", "brainsurgery_jax", "--install-completion"]
    line = ["bash", "-c", f"{' '.join(asked)}; true"]  # typer looks which shell it was called from
    subprocess.run(line, cwd=desk, env=environment(HOME=str(desk)), capture_output=True, check=True)
    assert "complete_bash" in (desk / ".bash_completions" / "brainsurgery-jax.sh").read_text()
