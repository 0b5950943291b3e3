"""The inputs and outputs of a plan, and of a plan within a plan: one reading for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.config_patch import FULL_FORM, read_change
from brainsurgery_jax.errors import Diagnostic, Span, did_you_mean
from brainsurgery_jax.plan.model import Input, Location, Output
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, plain, spans
from brainsurgery_jax.store.address import MARK, Address, split_alias
from brainsurgery_jax.store.formats import NAMES

INPUT_KEYS = ("alias", "path", "part", "leave_out", "fingerprint")
OUTPUT_KEYS = ("path", "alias", "format", "shard", "overwrite", "sidecars", "config", "metadata", "options", "asserts")
_OUTPUT_HINTS = {
    "path": "Write a destination, such as `path: out.safetensors` for a file or `path: out` for a folder.",
    "alias": "Write the alias to save, such as `alias: model`.",
    "shard": "Write a size in quotes or with its unit, such as `shard: 2GB`, or `shard: none`.",
}


class Endpoints:
    """Reads inputs and outputs, and collects mistakes in `problems`.

    `numbered`: of several inputs, number N written as `::path` has the alias `model_N`, as in plans within plans.
    """

    def __init__(self, unfilled: frozenset[Span] = frozenset(), *, numbered: bool = False) -> None:
        self.numbered = numbered
        self.problems: list[Diagnostic] = []
        self.unfilled = unfilled  # places whose value is not known; that has been told already
        self.doubtful = False

    def complain(self, code: str, message: str, span: Span | None, hint: str = "") -> None:
        if span not in self.unfilled:
            self.problems.append(Diagnostic(code, message, span, hint))

    def inputs(self, node: Node | None) -> tuple[Input, ...]:
        if node is None or plain_of(node) is None:
            return ()
        if not isinstance(node, List):
            self.complain("inputs-form", f"inputs: expected a list of 'alias::path', got {plain_of(node)!r}", node.span,
                          f"Write `inputs: [{_as_list(plain_of(node))}]`.")  # fmt: skip
            if not isinstance(plain_of(node), str):
                self.doubtful = True
                return ()
        out: dict[str, Input] = {}
        items = node.items if isinstance(node, List) else (node,)
        for at, item in enumerate(items, 1):
            entry = self.input(item, at, alone=len(items) == 1)
            if entry is not None and entry.alias in out:
                hint = f"Give each input a name of its own, such as '{entry.alias}2::{entry.path}'."
                self.complain("alias-duplicate", f"inputs: alias '{entry.alias}' is given twice", item.span, hint)
            elif entry is not None:
                out[entry.alias] = entry
        return tuple(out.values())

    def input(self, node: Node, at: int, *, alone: bool) -> Input | None:
        text, fingerprint = plain_of(node), ""
        if isinstance(text, dict):
            fingerprint = text.get("fingerprint", "")
            text = self.input_mapping(node, text)
        elif not isinstance(text, str) or not text:
            self.complain("inputs-form", f"inputs: expected 'alias::path', got {text!r}", node.span,
                          "Write the path of a checkpoint, such as 'base::models/base.safetensors'.")  # fmt: skip
            text = ""
        if not text:
            self.doubtful = True
            return None
        alias, path = split_alias(text)
        if not path:
            self.complain("inputs-form", f"inputs: '{text}' has no path", node.span,
                          f"Write '{alias or 'NAME'}::PATH', the path of a checkpoint.")  # fmt: skip
            return Input(alias or "model", "", node.span)
        if not alias and not alone and self.numbered and text.startswith(MARK):
            alias = f"model_{at}"
        if not alias and not alone:
            self.complain("inputs-form", f"inputs: '{text}' needs an alias, since there are several inputs", node.span,
                          f"Write 'NAME::{path}'.")  # fmt: skip
            self.doubtful = True
            return None
        unfilled = self.unfilled.intersection((node.span, *spans(node).values()))
        return Input(alias or "model", "" if unfilled else path, node.span, fingerprint)

    def input_mapping(self, node: Node, value: Mapping[str, Any]) -> str:
        """Convert a mapping of an input to its text form; empty if it is wrong."""
        places, before = spans(node), len(self.problems)
        for key, found in value.items():
            at = places.get((key,), node.span)
            if key not in INPUT_KEYS:
                self.complain("key-unknown", f"inputs: unknown key '{key}'.{did_you_mean(key, INPUT_KEYS)}", at,
                              f"Keys of an input: {', '.join(INPUT_KEYS)}.")  # fmt: skip
            elif key == "leave_out" and not _is_texts(found):
                self.complain("value-type", f"inputs: leave_out: expected a list of names, got {found!r}", at,
                              "Write the names of entries, such as `leave_out: [config, note]`.")  # fmt: skip
            elif key == "fingerprint" and found == "":
                continue  # of a variable that nobody has set
            elif key != "leave_out" and not (isinstance(found, str) and found and MARK not in found):
                self.complain("value-type", f"inputs: {key}: expected text without '{MARK}', got {found!r}", at,
                              f"Write it as `{key}: TEXT`.")  # fmt: skip
        if "path" not in value:
            self.complain("key-missing", "inputs: missing key 'path'", node.span, "Write the path of a checkpoint.")
        if len(self.problems) > before:
            return ""
        address = Address(value["path"], value.get("part", ""), tuple(value.get("leave_out", ())))
        return f"{value.get('alias', '')}{MARK}{address}"

    def output(self, node: Node, label: str) -> Output | None:
        value = plain_of(node)
        if self.unfilled.intersection(spans(node).values()):
            return None
        if isinstance(value, str):
            return None if self.names_alias(value, label, node.span) else Output(value, span=node.span)
        if not isinstance(value, dict):
            self.complain("output-form", f"{label}: expected a path or a mapping with `path`, got {value!r}", node.span,
                          "Write `output: out.safetensors`, or `output: {path: out, shard: 2GB}`.")  # fmt: skip
            return None
        places = spans(node)
        before = len(self.problems)
        self.output_keys(value, label, places, node.span)
        if len(self.problems) > before:
            return None
        return Output(**{k: v for k, v in value.items() if v is not None}, span=node.span, spans=places)

    def output_keys(self, value: Mapping[str, object], label: str, places: Mapping[Location, Span], span: Span) -> None:
        for key, found in value.items():
            at = places.get((key,), span)
            if key not in OUTPUT_KEYS:
                self.complain("key-unknown", f"{label}: unknown key '{key}'.{did_you_mean(key, OUTPUT_KEYS)}", at,
                              f"Keys of an output: {', '.join(OUTPUT_KEYS)}.")  # fmt: skip
            elif key in ("path", "alias", "shard") and not (isinstance(found, str) and found):
                self.complain("value-type", f"{label}.{key}: expected text, got {found!r}", at, _OUTPUT_HINTS[key])
            elif key in ("overwrite", "sidecars") and not isinstance(found, bool):
                self.complain(
                    "value-type", f"{label}.{key}: expected true or false, got {found!r}", at, f"Write `{key}: true`."
                )
            elif key == "format" and found is not None and found not in NAMES:
                meant = _OTHER_FORMATS.get(str(found).lower().lstrip("."))
                known = did_you_mean(found, NAMES) if isinstance(found, str) else ""
                near = f" Did you mean '{meant}'?" if meant else known
                hint = f"Formats: {', '.join(NAMES)}. Without `format`, the suffix of the path decides."
                self.complain("output-format", f"{label}.format: unknown format {found!r}.{near}", at, hint)
            elif key == "config" and not _is_options(found):
                self.complain("value-type", f"{label}.config: expected a mapping of keys to values, got {found!r}", at,
                              "Write the changes to config.json: `config: {num_hidden_layers: 9}`.")  # fmt: skip
            elif key == "config" and (wrong := _wrong_change(found)):
                self.complain("value-type", f"{label}.config.{wrong}", at, FULL_FORM)
            elif key == "asserts" and not isinstance(found, list):
                self.complain("value-type", f"{label}.asserts: expected a list of asserts, got {found!r}", at,
                              "Write what must hold of what is written: `asserts: [{finite: '.*'}]`.")  # fmt: skip
            elif key == "options" and not _is_options(found):
                self.complain("value-type", f"{label}.options: expected a mapping of names to values, got {found!r}",
                              at, "Write them as keys, such as `options: {compression: true}`.")  # fmt: skip
            elif key == "metadata" and not _is_text_map(found):
                self.complain("value-type", f"{label}.metadata: expected a mapping of text to text, got {found!r}", at,
                              "Quote numbers and words such as true: `metadata: {epoch: '3'}`.")  # fmt: skip
        if "path" not in value:
            self.complain("key-missing", f"{label}: missing key 'path'", span, _OUTPUT_HINTS["path"])
        elif isinstance(value["path"], str):
            self.names_alias(value["path"], f"{label}.path", places.get(("path",), span))

    def names_alias(self, path: str, label: str, span: Span) -> bool:
        """Whether the path of an output starts with an alias, as that of an input does. Then a folder of that name
        would be written, so it is refused."""
        alias, mark, rest = path.partition(MARK)
        if mark:
            self.complain("output-form", f"{label}: '{path}' has an alias before the path", span,
                          f"Write `{{path: {rest or 'out.safetensors'}, alias: {alias}}}`.")  # fmt: skip
        return bool(mark)


def fingerprint_step(entry: Input, place: Span) -> Node:
    """The assert that an input has the content that its plan says. `place`: where it is, if the input has none."""
    span = entry.span or place

    def mapping(**parts: Node) -> Node:
        return Map(tuple((Scalar(key, key, span), part) for key, part in parts.items()), span)

    of, wanted = (Scalar(text, text, span) for text in (entry.alias, entry.fingerprint))
    return mapping(**{"assert": mapping(fingerprint=mapping(of=of, **{"is": wanted}))})


_OTHER_FORMATS = {"pt": "torch", "pth": "torch", "bin": "torch", "ckpt": "torch", "hf": "safetensors", "numpy": "npz"}
"""Names that other tools use for our formats."""


def _as_list(found: object) -> str:
    """The list that someone means who writes one path, or a mapping of aliases to paths."""
    if isinstance(found, dict) and found and _is_text_map(found):
        return ", ".join(f"{alias}::{path}" for alias, path in found.items())
    return found if isinstance(found, str) and found else "base::models/base.safetensors"


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item and MARK not in item for item in value)


def _is_options(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(k, str) for k in value))


def _wrong_change(value: Any) -> str:
    """Return the mistake in a change to a config, if any."""
    try:
        read_change(value or {})
    except ValueError as bad:
        return str(bad)
    return ""


def plain_of(node: Node | None) -> Any:
    """The plain data of a node; None without one."""
    return None if node is None else plain(node)


def span_of(node: Node | None) -> Span | None:
    """The place of a node; None without one."""
    return None if node is None else node.span
