"""Types random lines at the prompt, without a terminal: each is completed, previewed and taken, and nothing breaks.

python -m tests.fuzz_prompt --seconds 300 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic

import brainsurgery_jax as bs
import brainsurgery_jax.select.pattern as pattern_module
from brainsurgery_jax.cli.prompt.glance import glance
from brainsurgery_jax.cli.prompt.mistakes import tell
from brainsurgery_jax.completion.candidates import complete
from brainsurgery_jax.desk import COMMANDS, Desk, Reply, is_unfinished
from brainsurgery_jax.select.limit import TimeLimit
from brainsurgery_jax.session import Session
from tests import fuzz_texts
from tests.fuzz_plans import TooSlow, time_limit
from tests.fuzz_runs import clear, write_files
from tests.fuzz_values import Maker


def typed(random: Random) -> str:
    """A line, a command, or a block."""
    kind = random.random()
    if kind < 0.75:
        return fuzz_texts.line(random)
    if kind < 0.85:
        return random.choice(list(COMMANDS)) + random.choice(("", " x", " copy", " assert", "  "))
    if kind < 0.95:
        return fuzz_texts.written(random, [Maker(random, 0.05).step(3)])
    return fuzz_texts.yaml(random)


def actions(desk: Desk, text: str, random: Random) -> dict[str, Callable[[], object]]:
    """What the prompt does with a text, from its first letter on."""
    begun = text[: random.randrange(len(text) + 1)]
    return {
        "unfinished": lambda: is_unfinished(text),
        "complete": lambda: complete(begun, desk.session, COMMANDS),
        "glance": lambda: glance(text, desk.session),
        "take": lambda: desk.take(text),
    }


def failures(random: Random, seen: Counter[str]) -> list[str]:
    """What broke in one session of a few random texts, with tracebacks."""
    found: list[str] = []
    with contextlib.closing(Session.begin(bs.load({"inputs": ["m::m.safetensors"]}))) as session:
        desk = Desk(session, quiet=True)
        for _ in range(random.choice((2, 5, 10))):
            text = typed(random)
            if text.startswith(("exit", "abort")):
                continue
            for name, action in actions(desk, text, random).items():
                seen[name] += 1
                try:
                    with time_limit(20):
                        reply = action()
                        while isinstance(reply, Reply) and reply.next == "confirm":
                            reply = desk.confirm(True)
                    if isinstance(reply, Reply) and reply.error is not None:
                        seen["refused"] += 1
                        tell(reply.error, text)
                except (Exception, TooSlow):  # whatever comes out is what is looked for
                    found.append(f"{name}: {text!r}\n\n{traceback.format_exc()}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_prompt", description="Type random lines.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    save, until = options.save.absolute(), monotonic() + options.seconds
    pattern_module.TIME_LIMIT = TimeLimit(0.05)
    warnings.simplefilter("error")
    seen, broken, number = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_files(Random(options.seed))
        while monotonic() < until:
            number += 1
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = failures(Random(f"{options.seed}:{number}"), seen)
            clear()
            for text in found:
                broken += 1
                save.mkdir(parents=True, exist_ok=True)
                (save / f"prompt-{options.seed}-{number}.txt").write_text(text, encoding="utf-8", errors="replace")
                print(f"session {number}: {text.splitlines()[-1]}"[:200], flush=True)
        os.chdir("/")
    print(f"{number} sessions, {broken} failures: {dict(seen)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
