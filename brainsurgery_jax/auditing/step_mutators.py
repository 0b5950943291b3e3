"""Errors in what a plan does: steps forgotten or done twice, numbers, signs, axes, dtypes, options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from brainsurgery_jax.auditing.cases import Case, Mutant, Mutator, leaves, show
from brainsurgery_jax.dtypes import parse_dtype

_SCALES = frozenset({"by", "factor", "strength", "scale", "lambda", "weight", "alpha", "value"})
_RANKS = frozenset({"rank", "low", "high"})
_AXES = frozenset({"dim", "axis"})
_ORDERS = frozenset({"order", "sizes"})
_COUNTS = frozenset({"experts", "per_token", "expert", "n", "indices", "drop", "keep", "heads"})
_SHARES = frozenset({"density", "share", "ratio", "t"})
_OPPOSITE = {"add": "subtract", "subtract": "add", "add_": "subtract_", "subtract_": "add_",
             "multiply_": "divide_", "divide_": "multiply_", "multiply": "divide", "divide": "multiply"}  # fmt: skip


def _drop(wanted: Callable[[str, str], bool]) -> Callable[[Case], Iterator[Mutant]]:
    """Mutants without one step. `wanted`: which steps, by op and text."""

    def plant(case: Case) -> Iterator[Mutant]:
        for at, op, _ in case.edits():
            text = show(case.steps[at])
            if wanted(op, text):
                yield Mutant(f"step {at + 1} left out: `{text}`", case.replace_step(at))

    return plant


def _repeat(case: Case) -> Iterator[Mutant]:
    for at, _, _ in case.edits():
        step = case.steps[at]
        yield Mutant(f"step {at + 1} done twice: `{show(step)}`", case.replace_step(at, step, step))


def _in_values(keys: frozenset[str], edit: Callable[[Any], Any]) -> Callable[[Case], Iterator[Mutant]]:
    """Mutants with another number below one of these keys of a payload. `edit`: the other value, or None."""

    def plant(case: Case) -> Iterator[Mutant]:
        for at, op, payload in case.edits():
            for path, leaf in leaves(payload):
                new = edit(leaf) if keys & set(map(str, path)) and _is_number(leaf) else None
                if new is not None and new != leaf:
                    yield Mutant(f"step {at + 1}: `{path[0]}`: {leaf} -> {new}", case.put(at, (op, *path), new))

    return plant


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shift_list(case: Case) -> Iterator[Mutant]:
    """Lists of layers, heads or experts, each number one more."""
    for at, op, payload in case.edits():
        for key, value in payload.items():
            if key in _COUNTS and isinstance(value, list) and value and all(map(_is_number, value)):
                new = [item + 1 for item in value]
                yield Mutant(f"step {at + 1}: `{key}: {value}` -> `{new}`", case.put(at, (op, key), new))


def _reverse(case: Case) -> Iterator[Mutant]:
    for at, op, payload in case.edits():
        for key in _ORDERS & set(payload):
            value = payload[key]
            if isinstance(value, list) and value != value[::-1]:
                yield Mutant(f"step {at + 1}: `{key}: {value}` reversed", case.put(at, (op, key), value[::-1]))


def _turn_axis(case: Case) -> Iterator[Mutant]:
    for at, op, payload in case.edits():
        for path, leaf in leaves(payload):
            if path[-1] in _AXES and isinstance(leaf, int):
                new = 1 - leaf if leaf in (0, 1) else 0
                yield Mutant(f"step {at + 1}: `{path[-1]}: {leaf}` -> `{new}`", case.put(at, (op, *path), new))


def _in_expressions(pattern: str, swap: Callable[[re.Match[str]], str]) -> Callable[[Case], Iterator[Mutant]]:
    rule = re.compile(pattern)

    def plant(case: Case) -> Iterator[Mutant]:
        for at, op, payload in case.edits():
            for path, leaf in leaves(payload):
                if not (isinstance(leaf, str) and {"expr", "let"} & set(map(str, path))):
                    continue
                for found in rule.finditer(leaf):
                    new = f"{leaf[: found.start()]}{swap(found)}{leaf[found.end() :]}"
                    yield Mutant(f"step {at + 1}: `{leaf}` -> `{new}`", case.put(at, (op, *path), new))

    return plant


def _take_opposite(case: Case) -> Iterator[Mutant]:
    for at, op, payload in case.edits():
        if op in _OPPOSITE:
            other = {_OPPOSITE[op]: dict(payload)}
            yield Mutant(f"step {at + 1}: `{op}` -> `{_OPPOSITE[op]}`", case.replace_step(at, other))


def _change_dtype(case: Case) -> Iterator[Mutant]:
    for at, op, payload in case.edits():
        for path, leaf in leaves(payload):
            dtype = parse_dtype(leaf) if isinstance(leaf, str) and path[-1] in ("to", "dtype") else None
            if dtype is not None and dtype.is_float:
                new = "bfloat16" if dtype.bits > 16 else "float16" if dtype.short == "bf16" else "bfloat16"
                yield Mutant(f"step {at + 1}: `{path[-1]}: {leaf}` -> `{new}`", case.put(at, (op, *path), new))


def _flip_option(case: Case) -> Iterator[Mutant]:
    for at, op, payload in case.edits():
        for path, leaf in leaves(payload):
            if isinstance(leaf, bool):
                new = not leaf
                yield Mutant(f"step {at + 1}: `{path[-1]}: {leaf}` -> `{new}`".lower(), case.put(at, (op, *path), new))


def _forget_config(case: Case) -> Iterator[Mutant]:
    for at, output in enumerate(case.outputs):
        if isinstance(output, dict) and output.get("config"):
            left = {key: value for key, value in output.items() if key != "config"}
            changed = (*case.outputs[:at], left, *case.outputs[at + 1 :])
            yield Mutant(f"output: `config: {output['config']}` left out", case._replace(outputs=changed))


_TURNS = ("permute", "transpose")
_CASTS = ("cast",)
_SCALINGS = ("scale", "multiply", "divide")
_DELETES = ("delete",)


def _is(op: str, kinds: tuple[str, ...]) -> bool:
    return op.removesuffix("_") in kinds


def _is_other(op: str, text: str) -> bool:
    return "bias" not in text and not _is(op, (*_TURNS, *_CASTS, *_SCALINGS))


STEP_MUTATORS = (
    Mutator("bias forgotten", "step forgotten", _drop(lambda op, text: "bias" in text)),
    Mutator("transposition forgotten", "transposition", _drop(lambda op, text: _is(op, _TURNS))),
    Mutator("cast forgotten", "dtype", _drop(lambda op, text: _is(op, _CASTS))),
    Mutator("scale forgotten", "scale", _drop(lambda op, text: _is(op, _SCALINGS))),
    Mutator("step forgotten", "step forgotten", _drop(_is_other)),
    Mutator("step done twice", "scale", _repeat),
    Mutator("scale doubled", "scale", _in_values(_SCALES, lambda x: 2 * x)),
    Mutator("scale of one", "scale", _in_values(_SCALES, lambda x: 1)),
    Mutator("scale forgotten in an expression", "scale", _in_expressions(r"[\d.]+ \* ", lambda m: "")),
    Mutator("wrong sign of a number", "wrong sign", _in_values(_SCALES, lambda x: -x)),
    Mutator("wrong sign in an expression", "wrong sign",
            _in_expressions(r" [-+] ", lambda m: " - " if "+" in m[0] else " + ")),
    Mutator("the opposite op", "wrong sign", _take_opposite),
    Mutator("share off", "number", _in_values(_SHARES, lambda x: x / 2)),
    Mutator("rank halved", "rank", _in_values(_RANKS, lambda x: x // 2 if x > 1 else None)),
    Mutator("number off by one", "off by one", _in_values(_COUNTS, lambda x: x + 1 if isinstance(x, int) else None)),
    Mutator("list off by one", "off by one", _shift_list),
    Mutator("order reversed", "wrong axis", _reverse),
    Mutator("another axis", "wrong axis", _turn_axis),
    Mutator("another axis in an expression", "wrong axis",
            _in_expressions(r"axis=-?\d", lambda m: "axis=0" if m[0] != "axis=0" else "axis=-1")),
    Mutator("another dtype", "dtype", _change_dtype),
    Mutator("an option turned over", "option", _flip_option),
    Mutator("config of the output forgotten", "stale config", _forget_config),
)  # fmt: skip
