"""Completion: compute candidates from the text before the cursor and a session, without a terminal or the names of ops.

Candidates come from the registry (ops, keys, words that a key takes, operators of assert), from the session (aliases,
tensor names, segments of structured references) and from the file system (for keys whose description says "path").
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import regex

from brainsurgery_jax.completion import captures, slots
from brainsurgery_jax.completion.cursor import Cursor
from brainsurgery_jax.completion.partial import place_of
from brainsurgery_jax.completion.side_files import json_files
from brainsurgery_jax.completion.slots import REFERENCES, Keys, PlainSlot, Slot, Steps, Token, ValueSlot
from brainsurgery_jax.dtypes import DTYPES
from brainsurgery_jax.nametree import natural_order
from brainsurgery_jax.op import ASSERTS, OPS, Field, Op
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.oly_words import quoted
from brainsurgery_jax.plan.scalars import read_scalar
from brainsurgery_jax.plan.schema import Schema, field_schema
from brainsurgery_jax.select.limit import TimeLimit
from brainsurgery_jax.select.regexes import check_regex
from brainsurgery_jax.session import Session

MOST = 24
"""The most names to offer one by one; more names are folded at their next dot."""
MOST_FILES = 200
PATIENCE = TimeLimit(0.3)


class Candidate(NamedTuple):
    """A text that may replace the last `-start` characters, its label in a menu, and its description."""

    text: str
    start: int
    display: str
    meta: str = ""


class Command(NamedTuple):
    """A command of the prompt: its description, and its argument."""

    does: str
    takes: str = ""  # "file" or "op"


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate for the word at a place, before it is quoted as its surroundings ask for. `tail` follows it."""

    text: str
    meta: str = ""
    display: str = ""
    tail: str = ""
    raw: bool = False


def complete(text: str, session: Session, commands: Mapping[str, Command] | None = None) -> list[Candidate]:
    """Return the possible continuations of a step (or of a line with one of the `commands`)."""
    if (found := _of_command(text, commands or {})) is not None:
        return found
    place = place_of(text)
    if place is None:
        return []
    asked = _Asked(place, session)
    made = [_candidate(f, place, len(text)) for f in asked.found()]
    if not place.path and place.kind == "key" and not place.yaml:
        made += [
            Candidate(name + (" " if c.takes else ""), place.start - len(text), name, c.does)
            for name, c in (commands or {}).items()
            if name.startswith(place.word) and name not in OPS
        ]
    return list(dict.fromkeys(made))


def _of_command(text: str, commands: Mapping[str, Command]) -> list[Candidate] | None:
    """Return candidates for the argument of a command; None if the text is not a command."""
    name, blank, rest = text.lstrip().partition(" ")
    if not blank or name not in commands or rest.lstrip()[:1] == ":":
        return None
    match commands[name].takes:
        case "file":
            return [Candidate(f.text, -len(rest), f.display, f.meta) for f in paths(rest)]
        case "op":
            known = [(n, op) for n, op in OPS.items()] + [(f"assert.{n}", op) for n, op in ASSERTS.items()]
            return [Candidate(n, -len(rest), n, _first_line(op)) for n, op in known if n.startswith(rest)]
    return []


def _candidate(found: Found, place: Cursor, length: int) -> Candidate:
    text = found.text if found.raw or place.quote else _quote(found.text, place)
    return Candidate(text + found.tail, place.start - length, found.display or found.text, found.meta)


_SAFE = re.compile(r"[\w./\\$~^+*-][\w./\\$~^+|?()*:<>-]*")


def _quote(text: str, place: Cursor) -> str:
    """Quote a value if it would otherwise be misread or cut short."""
    odd = place.yaml and (text[:1] in "*&!%@`~-?" or ": " in text or text.endswith(":"))
    unfinished = text.endswith("::") or captures.is_open(text)
    if unfinished or (_SAFE.fullmatch(text) and not odd and isinstance(read_scalar(text), str)):
        return text
    try:
        return quoted(text)
    except ValueError:  # what is typed holds a character that nothing can hold
        return text


def _first_line(op: Op) -> str:
    return op.doc.partition("\n")[0]


class _Asked:
    """One question for candidates."""

    def __init__(self, place: Cursor, session: Session):
        self.place, self.session = place, session
        self.slot = slots.slot_of(place)

    def found(self) -> Iterator[Found]:
        place, slot = self.place, self.slot
        if slot is None:
            return
        match place.kind:
            case "key":
                yield from self.entries(slot)
            case "entry":
                yield from self.entries(slot)
                yield from self.values(slot)
            case "value":
                yield from self.values(slot)
                if not place.quote:
                    yield from self.entries(slot, braced=True)
            case "after":
                yield from self.more(slot)

    # --- keys

    def entries(self, slot: Slot, *, braced: bool = False) -> Iterator[Found]:
        """Yield the possible keys of a mapping."""
        given = self.place.value(self.place.path)
        used = set(given) - {self.place.word} if isinstance(given, dict) else set()
        for key, meta, tail in self._entries(slot):
            if key.startswith(self.place.word) and key not in used:
                yield Found(("{" if braced else "") + key, meta, key, tail, raw=True)

    def _entries(self, slot: Slot) -> Iterator[tuple[str, str, str]]:
        match slot:
            case Steps():
                yield from ((name, _first_line(op), _tail(op)) for name, op in sorted(OPS.items()))
            case Keys(op):
                yield from ((f.key, _about(f), ": ") for f in slots.keys(op))
            case ValueSlot(field) if field.role is not None and field.role.is_assert:
                yield from ((name, _first_line(op), ": ") for name, op in ASSERTS.items())
            case ValueSlot(field) if field.role is not None and field.role.kind in REFERENCES:
                if self.place.kind == "key":
                    yield from ((part, "a part of the reference", ": ") for part in slots.parts(field.role))
            case ValueSlot(field) if field.role is None:
                yield from ((key, meta, ": ") for key, meta in slots.properties(field_schema(field)))
            case PlainSlot(schema):
                yield from ((key, meta, ": ") for key, meta in slots.properties(schema))

    def more(self, slot: Slot) -> Iterator[Found]:
        """Yield the possible continuations after a complete value: missing keys, and the closing bracket."""
        place = self.place
        if place.yaml and not place.depth:
            return
        given = place.value(place.path)
        if isinstance(given, dict):
            for key, meta, tail in self._entries(slot):
                if key not in given:
                    yield Found(f", {key}", meta, key, tail, raw=True)

    # --- values

    def values(self, slot: Slot) -> Iterator[Found]:
        """Yield the possible values."""
        match slot:
            case Keys(op) if op.shorthand:
                field = next(f for f in op.fields() if f.key == op.shorthand)
                yield from self.values(ValueSlot(field, op, self.place.path[:-1]))
            case ValueSlot(field) if field.role is None:
                yield from self.plain(field_schema(field), field.key)
            case ValueSlot(field) if field.role is not None:
                yield from self.of_role(slot, field)
            case Token():
                yield from self.tokens(slot)
            case PlainSlot(schema, key):
                yield from self.plain(schema, key)

    def of_role(self, slot: ValueSlot, field: Field) -> Iterator[Found]:
        role = field.role
        assert role is not None
        match role.kind:
            case "dtype":
                for d in DTYPES:
                    fitting = [w for w in (d.name, d.short, *d.aliases) if w.startswith(self.place.word)]
                    if d.numpy and fitting:
                        yield Found(fitting[0], f"{d.bits} bits" if fitting[0] == d.name else d.name)
            case "pattern" | "template" | "name":
                yield from self.references(slot)
            case "plan-file":
                yield from paths(self.place.word)

    def plain(self, schema: Schema, key: str) -> Iterator[Found]:
        word, told = self.place.word, list(slots.descriptions(schema))
        default = schema.get("default")
        for value in dict.fromkeys(slots.words(schema)):
            if value.startswith(word):
                yield Found(value, "default" if value == str(default).lower() else "", raw=True)
        if any(t.startswith("path") for t in told):
            yield from paths(word)
        if any(t.startswith("another JSON file") for t in told):
            yield from (Found(file) for file in json_files(self.session) if file.startswith(word))
        if key.endswith("alias") or any("alias" in t for t in told):
            yield from (Found(a, self._count(a)) for a in self.session.state.spaces if a.startswith(word))

    # --- tensors

    def references(self, slot: ValueSlot) -> Iterator[Found]:
        """Tensor names, aliases before them, and what a pattern captured."""
        word, state = self.place.word, self.session.state
        holder = self.place.path[:-1] if self.place.path[-1:] == ("name",) else slot.beside
        beside = self.place.value((*holder, "alias"))
        alias, mark, name = word.partition("::")
        if not mark:
            alias, name = (beside if isinstance(beside, str) else state.default_alias or ""), word
            if len(state.spaces) > 1 or state.default_alias is None:
                aliases = (a for a in state.spaces if a.startswith(word))
                yield from (Found(f"{a}::", self._count(a), raw=True) for a in aliases)
        alias = alias or state.default_alias or ""
        if slot.field.role is not None and slot.field.role.is_template:
            source = self._source(slot)
            offers = captures.of_regex(source, word) if isinstance(source, str) else ()
            yield from (Found(o.text, o.meta, o.display) for o in offers)
        if alias in state.spaces and not name.startswith("["):
            yield from self.names(slot, alias, name, word[: len(word) - len(name)])

    def names(self, slot: ValueSlot, alias: str, typed: str, head: str) -> Iterator[Found]:
        """Names of an alias that begin as typed; the part that is typed may be a regex."""
        assert slot.field.role is not None
        names = self.session.state.spaces[alias].names
        pattern = slot.field.role.is_pattern
        escaped = pattern and "\\." in typed
        for tail, count, whole in folded(_tails(typed, names, pattern=pattern), typed):
            shown = tail.replace(".", "\\.") if escaped else tail
            text = head + typed + (shown if escaped or not pattern else _as_pattern(tail))
            meta = str(names[typed + tail].aval) if whole and typed + tail in names else _format_count(count)
            yield Found(text, meta, display=f"{head}{typed}{shown}")
            if whole and not tail and (key := self._next_key(slot)):
                yield Found(text, "and the next key", f"{text}, {key}:", f", {key}: ")

    def _next_key(self, slot: ValueSlot) -> str:
        """Return the required key that a step still lacks, if it can follow on the same line."""
        place = self.place
        given = place.value(slot.beside)
        if place.quote or (place.yaml and not place.depth) or not isinstance(given, dict) or slot.op.bare:
            return ""
        inside = place.path[:-1] == slot.beside
        missing = [f.key for f in slots.keys(slot.op) if slots.is_required(f) and f.key not in given]
        return missing[0] if missing and inside else ""

    def _source(self, slot: ValueSlot) -> object:
        """Return the value of the key that holds the pattern."""
        given = self.place.value(slot.beside)
        patterns = [f.key for f in slot.op.fields() if f.role is not None and f.role.is_pattern]
        return next((given[k] for k in patterns if k in given), None) if isinstance(given, dict) else None

    def tokens(self, slot: Token) -> Iterator[Found]:
        """The next segment of a structured reference."""
        word, field = self.place.word, slot.value.field
        before = self.place.value(slot.before)
        before = before if isinstance(before, list) else []
        assert field.role is not None
        if field.role.is_template:
            offers = captures.of_tokens(self._source(slot.value), word)
            yield from (Found(o.text, o.meta, o.display) for o in offers)
        alias = self.session.state.default_alias
        if alias is None:
            return
        segments = _segments(before, self.session.state.spaces[alias].names)
        if len(segments) <= MOST:
            yield from (
                Found(s, _format_count(n)) for s, n in sorted(segments.items(), key=lambda s: natural_order(s[0])) if
                s.startswith(word)
            )  # fmt: skip
        if field.role.is_pattern:
            bound = sum(t[:1] in "$*" for t in before if isinstance(t, str))
            fresh = "ijkxyz"[bound % 6]
            wild = ((f"${fresh}", "any one segment"), ("*rest", "any run of segments"))
            yield from (Found(t, meta) for t, meta in wild if t.startswith(word) and t not in before)

    def _count(self, alias: str) -> str:
        return _format_count(len(self.session.state.spaces[alias].names))


def _tail(op: Op) -> str:
    """Return the text after the name of a chosen op: empty if it needs no keys."""
    return ": " if any(map(slots.is_required, op.fields())) or op.shorthand else ""


def _about(field: Field) -> str:
    return pages.kind(field) + ("; required" if slots.is_required(field) else "")


def _format_count(number: int) -> str:
    return f"{number:,} tensor" + "s" * (number != 1)


def _as_pattern(tail: str) -> str:
    """The rest of a name as a pattern: dots stay, since they match themselves and read better."""
    return "".join(re.escape(c) if c in "[](){}*+?|^$\\" else c for c in tail)


def _tails(typed: str, names: Iterable[str], *, pattern: bool) -> list[str]:
    """What is left of the names that begin as typed."""
    plain = typed.replace("\\.", ".")
    if not pattern or not re.search(r"[\\()\[\]{}*+?|^$]", plain):
        return [name[len(plain) :] for name in names if name.startswith(plain)]
    try:
        check_regex(typed)
        begun = regex.compile(typed)
        deadline = PATIENCE.start()
        found = (begun.match(name, timeout=deadline.remaining()) for name in names)
        return [m.string[m.end() :] for m in found if m is not None]
    except (ValueError, regex.error, RecursionError, TimeoutError):  # RefError is a ValueError
        return []


def folded(tails: Iterable[str], head: str = "") -> list[tuple[str, int, bool]]:
    """What may follow `head`, how many names each end stands for, and whether it is a whole one. Where they are many,
    all that share the same next segments are one."""
    counts = Counter(tails)
    each = ((tail, count, True) for tail, count in counts.items())
    ends = each if len(counts) <= MOST else _groups(counts)
    return sorted(ends, key=lambda end: natural_order(head + end[0]))


def _groups(counts: Mapping[str, int]) -> Iterator[tuple[str, int, bool]]:
    """Texts by the first segment in which they differ; one that is alone stands for itself."""
    shared = _common_segments(counts)
    groups: dict[str, list[str]] = {}
    for tail in counts:
        segment, dot, _ = tail[len(shared) :].partition(".")
        groups.setdefault(shared + segment + dot, []).append(tail)
    for text, group in groups.items():
        alone = len(group) == 1
        yield group[0] if alone else text, sum(counts[tail] for tail in group), alone or text in counts


def _common_segments(texts: Collection[str]) -> str:
    """The segments that all texts begin with, with their dots."""
    first, last = min(texts), max(texts)
    same = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind(".", 0, same) + 1]


def _segments(before: list[object], names: Iterable[str]) -> dict[str, int]:
    """The segments that follow these tokens in names, and in how many."""
    counts: dict[str, int] = {}
    texts = [t for t in before if isinstance(t, str) and t[:1] != "*"]
    if len(texts) < len(before):
        return counts
    for name in names:
        parts = name.split(".")
        if len(parts) > len(texts) and all(t[:1] in "$~" or t == p for t, p in zip(texts, parts, strict=False)):
            counts[parts[len(texts)]] = counts.get(parts[len(texts)], 0) + 1
    return counts


def paths(word: str) -> list[Found]:
    """Files and folders that begin as typed, folders first."""
    folder, name = os.path.split(word)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            found = [(e.name, e.is_dir()) for e in entries if e.name.startswith(name)]
    except OSError:
        return []
    shown = sorted((not is_dir, n) for n, is_dir in found if name.startswith(".") or not n.startswith("."))
    head = word[: len(word) - len(name)]
    return [
        Found(head + n + ("" if is_file else "/"), "" if is_file else "folder", n + ("" if is_file else "/"))
        for is_file, n in shown[:MOST_FILES]
    ]
