"""Random texts of plans: mutations of real ones, ones made from the registry, and YAML as nasty as it can be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.plan.oly import to_oly
from brainsurgery_jax.plan.source import dump_yaml
from tests.fuzz_values import REGEXES, Maker


def corpus(folder: Path) -> list[str]:
    """The plans of a folder, and a plan for the example of every op."""
    plans = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))]
    records = [*OPS.values(), *ASSERTS.values()]
    examples = [text for op in records for text in re.findall(r"Example: `(.+?)`\s*(?:\n|$)", op.doc)]
    return plans + [f"inputs: [m::m.safetensors]\ntransforms:\n  - {text}\noutput: out\n" for text in examples]


def plan_text(random: Random, texts: Sequence[str]) -> bytes:
    """One random text."""
    kinds: list[Callable[[], str | bytes]] = [
        lambda: mutated(random, random.choice(texts)),
        lambda: written(random, Maker(random, wildness(random)).plan()),
        lambda: mutated(random, written(random, Maker(random, 0.0).plan())),
        lambda: yaml(random),
    ]
    (kind,) = random.choices(kinds, (25, 55, 10, 10))
    made = kind()
    return made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass")


def wildness(random: Random) -> float:
    return random.choice((0.0, 0.0, 0.02, 0.05, 0.2))


def override(random: Random) -> str:
    """An argument of the command line beside the plan."""
    keys = ("transforms[0]", "output", "vars.x", "inputs[1]", "transforms[0].copy.to", "a..b", "[0]", "output.shard")
    values = (*REGEXES[:6], "[1", "{a: b}", "1e9", "", "'x", "null", "[[[[", '"\\q"')
    return f"{random.choice(keys)}={random.choice(values)}"


def line(random: Random) -> str:
    """A step in OLY, nearly right or changed."""
    try:
        text = to_oly(Maker(random, wildness(random)).step(3))
    except ValueError:
        text = "".join(random.choices(WORDS, k=9))
    return mutated(random, text).decode("utf-8", "replace") if random.random() < 0.5 else text


def written(random: Random, data: Any) -> str:
    """The data as YAML in block style or as JSON; with line ends of any kind."""
    style = random.random()
    if style < 0.3:
        text = dump_yaml(data)
    else:  # ten times faster
        text = json.dumps(data, indent=random.choice((None, 1)), ensure_ascii=style < 0.4)
    return text.replace("\n", "\r\n") if random.random() < 0.03 else text


# --- Mutations --------------------------------------------------------------------------------------------------------

PIECES = [
    b"", b"\n", b"  ", b"\t", b": ", b"- ", b"[", b"]", b"{", b"}", b"'", b'"', b"#", b"*", b"&a ", b"*a", b"::", b"\\",
    b"\xff", b"\x00", b"\xef\xbb\xbf", b"\r\n", b"${", b"~", b"|\n", b">-\n", b"?", b"<<: ", b"!!str ", b"---\n", b"%",
    b"9" * 40, b"(", b")+", b"\xed\xa0\x80", b"null", b"1e999", b"\xc2\x85", b"\xf0\x9f\x98\x80",
]  # fmt: skip


def mutated(random: Random, text: str) -> bytes:
    """The text with a few bytes changed, lost, doubled, moved, or with something put between them."""
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice((0, 1, 1, 2, 5, 30)))
        match random.randrange(5):
            case 0:
                data = data[:start] + random.choice(PIECES) + data[end:]
            case 1:
                data = data[:start] + bytes([random.randrange(256)]) + data[end:]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:end] * random.choice((1, 2, 50)) + data[end:]
            case _:
                at = random.randrange(len(data) + 1)
                data = data[:at] + data[start:end] + data[at:]
    return data


# --- YAML -------------------------------------------------------------------------------------------------------------

WORDS = [
    "a", "b: ", "- ", "? ", ": ", "[", "]", "{", "}", ",", "\n", "\n  ", "\n    ", "&x ", "*x", "<<: *x", "!!str ",
    "!x ", "'", '"', "|\n", ">\n", "#", "---\n", "...\n", "%YAML 1.2\n", "\t", "\r\n", "\ufeff", "\x85", "1e6", "~",
    "m::", "@", "inputs: ", "transforms: ", "output: ", "vars: ", "copy: ", "from: ", "\\x41", "\\ud800", "${vars.a}",
    "`", "1:2",
]  # fmt: skip


def yaml(random: Random) -> str:
    """Words of YAML in any order, or a bomb."""
    if random.random() < 0.85:
        return "".join(random.choices(WORDS, k=random.randrange(1, 60)))
    head = random.choice(("", "inputs: ", "transforms: ", "vars: "))
    return random.choice(BOMBS)(random.choice((3, 30, 190, 3000)), head)


STEPS = "inputs: [m::m.safetensors]\ntransforms:\n"
BOMBS: list[Callable[[int, str], str]] = [
    lambda n, head: f"{head}\n- &a0 [x, y]\n" + "".join(f"- &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, n // 9)),
    lambda n, head: head + "".join(f"\n- a{i}: &a{i} {{<<: *a{max(i - 1, 0)}, k{i}: 1}}" for i in range(n)),
    lambda n, head: head + "[" * n,
    lambda n, head: head + "[" * n + "]" * n,
    lambda n, head: head + "{a: " * n + "b" + "}" * n,
    lambda n, head: head + "\n" + "".join(f"{' ' * i}a:\n" for i in range(min(n, 400))),
    lambda n, head: head + "- " * n + "x",
    lambda n, head: head + "? " * n + "x",
    lambda n, head: head + "9" * n + "." + "9" * n + "e" + "9" * n,
    lambda n, head: head + '"' + "\\u0041" * n + '"',
    lambda n, head: head + "'" + "''" * n,
    lambda n, head: head + "{" + ", ".join(f"k{i % 9}: {i}" for i in range(n)) + "}",
    lambda n, head: "x" * n * 30 + ": 1",
    lambda n, head: STEPS + "- assert: " + "{not: " * n + "{exists: w}" + "}" * n,
    lambda n, head: STEPS + "- assert: " + "{all: [" * n + "{exists: w}" + "]}" * n,
    lambda n, head: STEPS + "- " + "execute: {transforms: [" * min(n, 90) + "help" + "]}" * min(n, 90),
    lambda n, head: STEPS + "- move: {from: '(.*)', to: '\\1\\1'}\n" * min(n, 60),
    lambda n, head: STEPS + "- copy: {from: '(.*)', to: 'x.\\1'}\n" * min(n, 12),
    lambda n, head: STEPS + f"- {'y' * n}: {{from: a}}\n- copy: {{from: {'z' * n}, to: {'(' * n}}}\n",
    lambda n, head: f"vars: {{x: '{'${vars.x}' * n}'}}\n" + STEPS + "- delete: '${vars.x}'",
    lambda n, head: STEPS + "- delete: {target: nothing}\n" * (n // 10),
]
