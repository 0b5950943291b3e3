"""YAML text as a tree of nodes that know where they stand. Knows nothing of plans, steps or ops.

The dialect is YAML 1.1 as PyYAML reads it, except that `1e-6` is a number, sexagesimals (`12:30`) and dates are texts,
and a repeated key is an error. Keys are always texts: `1: x` has the key "1". Merge keys (`<<: *base`) work as usual:
what the mapping itself says wins. Aliases share nodes, so what an alias brings in stands where its anchor stands; a
value that is not written at all (`dump:`) stands where its key stands. libyaml and PyYAML give the same nodes, but
differ in what they refuse at the fringes (tabs behind a colon, `?` and `:` at the end of a text inside brackets).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import yaml
from yaml import events as ev

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.plan.scalars import Plain, read_scalar
from brainsurgery_jax.plan.yaml_errors import BY_EIGHT_DIGITS, LESS_DEEP, explain_yaml_error

MAX_NODES = 1_000_000  # aliases expanded; ten lines of aliases to aliases can otherwise stand for 10**9 nodes
MAX_DEPTH = 200  # everything that walks a plan may recurse
Loader: TypeAlias = "type[yaml.SafeLoader] | type[yaml.CSafeLoader]"
LOADER: Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; `text` is how it was written, without quotes. `reference`: how it was written before variables of
    the environment were filled in, if there are any, since their values may be secret."""

    value: Plain
    text: str
    span: Span
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class List:
    """A list of nodes."""

    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Map:
    """A mapping, in the order of the file; keys are distinct texts."""

    entries: tuple[tuple[Scalar, Node], ...]
    span: Span


Node: TypeAlias = Scalar | List | Map


def plain(node: Node) -> Any:
    """The data of a node: None, bool, int, float, str, list and dict."""
    match node:
        case Scalar():
            return node.value
        case List():
            return [plain(item) for item in node.items]
        case Map():
            return {key.text: plain(value) for key, value in node.entries}


def public(node: Node) -> Any:
    """The data of a node, with references to the environment in place of what they stand for."""
    match node:
        case Scalar():
            return node.value if node.reference is None else node.reference
        case List():
            return [public(item) for item in node.items]
        case Map():
            return {key.text: public(value) for key, value in node.entries}


def get(node: Map, key: str) -> Node | None:
    """The value under a key, or None if the mapping has no such key."""
    return next((value for k, value in node.entries if k.text == key), None)


def spans(node: Node) -> dict[tuple[str | int, ...], Span]:
    """Where everything below a node stands, by its path of keys and indices; `()` is the node itself.

    The key `k` of the mapping at `path` is found under `(*path, "@key", k)`, its value under `(*path, k)`.
    """
    return dict(_places(node, ()))


def _places(node: Node, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Span]]:
    yield path, node.span
    match node:
        case List():
            for i, item in enumerate(node.items):
                yield from _places(item, (*path, i))
        case Map():
            for key, value in node.entries:
                yield (*path, "@key", key.text), key.span
                yield from _places(value, (*path, key.text))
        case Scalar():
            pass


def by_path(node: Node | None, head: str = "", below: str = "") -> Node | None:
    """A node that came as plain data, each place in it named by the keys and indices that lead there: `head`, and what
    follows `below`."""
    numbers = count(1)

    def span_of(path: str) -> Span:
        return Span(head + path.removeprefix(below) or "the plan", 0, next(numbers))

    return None if node is None else _by_path(node, "", span_of)


def _by_path(node: Node, path: str, span_of: Callable[[str], Span]) -> Node:
    span = span_of(path)
    match node:
        case List(items):
            return List(tuple(_by_path(n, f"{path}[{i}]", span_of) for i, n in enumerate(items)), span)
        case Map(entries):
            paths = [f"{path}.{key.text}".lstrip(".") for key, _ in entries]
            return Map(
                tuple(
                    (replace(key, span=span_of(to)), _by_path(value, to, span_of))
                    for (key, value), to in zip(entries, paths, strict=True)
                ),
                span,
            )
        case Scalar():
            return replace(node, span=span)


def describe(node: Node) -> str:
    """What a node is, in the words of an error message: "the text 'x'", "a list of 3 items", ..."""
    match node:
        case Scalar(None):
            return "nothing"
        case Scalar(str()):
            return f"the text '{shorten(node.text)}'"
        case Scalar():
            return f"the value {shorten(node.text)}"
        case List():
            return f"a list of {len(node.items)} item{'' if len(node.items) == 1 else 's'}"
        case Map(()):
            return "an empty mapping"
        case Map():
            return "a mapping with the keys " + shorten(", ".join(key.text for key, _ in node.entries))


def shorten(text: str, most: int = 80) -> str:
    """The text on one line, and only its start if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


_SURROGATE = re.compile("[\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def compose(
    text: str, file: str, *, loader: Loader = LOADER, repeatable: Callable[[str], bool] = lambda key: False
) -> Node | None:
    """The tree of a YAML text, or None if it holds nothing. Raises one PlanError with every mistake found.

    `repeatable`: keys that may stand several times in one mapping; the last counts.
    """
    text = text.removeprefix("\ufeff")
    if bad := _UNPRINTABLE.search(text):
        raise PlanError([_unprintable(text, bad.start(), file)])
    composer = _Composer(text, file, loader, repeatable)
    root = None
    try:
        root = composer.document()
    except yaml.YAMLError as error:
        composer.problems.append(explain_yaml_error(error, text, file))
    except (ValueError, OverflowError):  # PyYAML's scanner does not guard `"\Uffffffff"` and `%YAML 1.99...9`
        composer.complain("yaml-syntax", "a number in an escape or a directive is too large", Span(file))
    if composer.problems:
        raise PlanError(composer.problems)
    return root


def _unprintable(text: str, at: int, file: str) -> Diagnostic:
    start = text.rfind("\n", 0, at) + 1
    span = Span(file, text.count("\n", 0, at) + 1, at - start + 1)
    message = f"the character U+{ord(text[at]):04X} is not allowed in a YAML file"
    return Diagnostic("yaml-syntax", message, span, r'Remove it, or write it as an escape in double quotes: "\x07".')


class _Anchored(NamedTuple):
    node: Node
    height: int
    size: int


_STR, _SEQ, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


class _Composer:
    """Builds the nodes of one document from its events, and collects the mistakes that need not stop it."""

    def __init__(self, text: str, file: str, loader: Loader, repeatable: Callable[[str], bool]):
        self.events: Iterator[ev.Event] = iter(yaml.parse(text, Loader=loader))
        self.file, self.repeatable = file, repeatable
        self.problems: list[Diagnostic] = []
        self.anchors: dict[str, _Anchored] = {}
        self.total = 0

    def document(self) -> Node | None:
        root = None
        for event in self.events:
            if isinstance(event, ev.DocumentStartEvent) and root is not None:
                hint = "A file holds one document: remove the '---' line, or make two files."
                self.complain("yaml-documents", "a second document starts here", self.span(event), hint)
                break
            if isinstance(event, ev.NodeEvent):
                root, _ = self.node(event, 1)
        return root

    def node(self, event: ev.Event, depth: int) -> tuple[Node, int]:
        """The node that starts with this event, and how deep it is."""
        if isinstance(event, ev.AliasEvent):
            return self.alias(event, depth)
        assert isinstance(event, ev.NodeEvent), event
        before = self.total
        self.count(1 + len(getattr(event, "value", "")) // 64, depth, event)  # a long text counts as several values
        built, height = self.read_untagged(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchored(built, height, self.total - before)
        return built, height

    def read_untagged(self, event: ev.NodeEvent, depth: int) -> tuple[Node, int]:
        if isinstance(event, ev.ScalarEvent):
            self.check_tag(event, _STR)
            return Scalar(self.value(event), event.value, self.span(event)), 1
        if isinstance(event, ev.SequenceStartEvent):
            self.check_tag(event, _SEQ)
            return self.list(event, depth)
        assert isinstance(event, ev.MappingStartEvent)
        self.check_tag(event, _MAP)
        return self.map(event, depth)

    def list(self, event: ev.NodeEvent, depth: int) -> tuple[Node, int]:
        items, highest = [], 0
        while not isinstance(inner := next(self.events), ev.SequenceEndEvent):
            item, height = self.node(inner, depth + 1)
            items.append(item)
            highest = max(highest, height)
        return List(tuple(items), self.span(event)), highest + 1

    def map(self, event: ev.NodeEvent, depth: int) -> tuple[Node, int]:
        own: dict[str, tuple[Scalar, Node]] = {}
        merged: dict[str, tuple[Scalar, Node]] = {}
        highest = 0
        while not isinstance(inner := next(self.events), ev.MappingEndEvent):
            key = self.key(inner, depth + 1)
            value_event = next(self.events)
            value, height = self.node(value_event, depth + 1)
            highest = max(highest, height)
            if key is not None and _is_absent(value_event):  # the loaders disagree on where nothing stands
                value = Scalar(None, "", key.span)
            if _is_merge(inner):
                merged = self.merge(value, self.span(inner)) | merged
            elif key is not None:
                self.check_unique(key, own)
                own[key.text] = key, value
        return Map(tuple((merged | own).values()), self.span(event)), highest + 1

    def key(self, event: ev.Event, depth: int) -> Scalar | None:
        node, _ = self.node(event, depth)
        if isinstance(node, Scalar):
            return Scalar(node.text, node.text, self.span(event))
        hint = "Quote a text that starts with { or [: '{i}'."
        self.complain("yaml-key", f"a key must be a text, but this one is {describe(node)}", self.span(event), hint)
        return None

    def check_unique(self, key: Scalar, seen: dict[str, tuple[Scalar, Node]]) -> None:
        if key.text not in seen or self.repeatable(key.text):
            return
        first = seen[key.text][0].span
        hint = "Remove one of them; steps of the same name go into a list, each with a dash."
        message = f"the key '{key.text}' occurs twice in one mapping, in line {first.line} and in line {key.span.line}"
        self.complain("yaml-duplicate-key", message, key.span, hint)

    def merge(self, value: Node, span: Span) -> dict[str, tuple[Scalar, Node]]:
        """What a merge key brings in: the entries of one mapping, or of a list of them of which the first wins."""
        sources = value.items if isinstance(value, List) else (value,)
        entries: dict[str, tuple[Scalar, Node]] = {}
        for source in reversed(sources):
            if isinstance(source, Map):
                entries |= {key.text: (key, inner) for key, inner in source.entries}
            elif describe(source) != "nothing":  # `<<:` and an alias that is reported already
                hint = (
                    "Write `<<: *defaults` or `<<: [*first, *second]` with anchors of mappings; or quote the key: '<<'."
                )
                message = f"a merge key '<<' takes a mapping or a list of mappings, but got {describe(source)}"
                self.complain("yaml-merge-key", message, span, hint)
        return entries

    def alias(self, event: ev.AliasEvent, depth: int) -> tuple[Node, int]:
        known = self.anchors.get(str(event.anchor))
        if known is None:
            message = f"*{event.anchor} is read as a YAML alias, but no anchor &{event.anchor} comes before it"
            hint = f"Quote a text that starts with *: '*{event.anchor}'."
            self.complain("yaml-syntax", message, self.span(event), hint)
            return Scalar(None, "", self.span(event)), 1
        self.count(known.size, depth + known.height - 1, event)
        return known.node, known.height

    def value(self, event: ev.ScalarEvent) -> Plain:
        if not event.value.isascii() and _SURROGATE.search(event.value):  # libyaml refuses them, PyYAML lets them pass
            message = "an escape in this text is half a character (a surrogate)"
            self.complain("yaml-syntax", message, self.span(event), BY_EIGHT_DIGITS)
        if "\0" in event.value:
            hint = r"Remove the '\0' (or '\x00'): no name, path or number holds one."
            self.complain("yaml-syntax", "an escape in this text is the character U+0000", self.span(event), hint)
        return read_scalar(event.value) if event.implicit[0] else event.value

    def check_tag(self, event: ev.ScalarEvent | ev.CollectionStartEvent, allowed: str) -> None:
        if event.tag not in (None, allowed):
            hint = "Remove the tag: numbers are recognised as they are. Quote a text that starts with !."
            self.complain("yaml-tag", f"the YAML tag {event.tag} is not used in plans", self.span(event), hint)

    def count(self, nodes: int, depth: int, event: ev.Event) -> None:
        self.total += nodes
        if self.total <= MAX_NODES and depth <= MAX_DEPTH:
            return
        if depth > MAX_DEPTH:
            message, hint = f"lists and mappings are nested more than {MAX_DEPTH} deep", LESS_DEEP
        else:
            message = f"this YAML expands to more than {MAX_NODES:,} values"
            hint = "Aliases count with everything they expand to: avoid aliases of nodes that contain aliases."
        self.complain("yaml-too-large", message, self.span(event), hint)
        raise PlanError(self.problems)

    def span(self, event: ev.Event) -> Span:
        return Span(self.file, at.line + 1, at.column + 1) if (at := event.start_mark) else Span(self.file)

    def complain(self, code: str, message: str, span: Span, hint: str = "") -> None:
        self.problems.append(Diagnostic(code, message, span, hint))


def _is_absent(value: object) -> bool:
    return isinstance(value, ev.ScalarEvent) and not value.value and value.implicit[0] and value.anchor is None


def _is_merge(key: object) -> bool:
    return isinstance(key, ev.ScalarEvent) and key.implicit[0] and key.value == "<<"


_LINE_END = re.compile(r"[\r\n\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Block style without aliases, with list items indented below their key."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None  # PyYAML then quotes what PyYAML would read as something else; `1e-6` is a number only to us
    if not isinstance(read_scalar(text), str):
        style = "'"
    if _LINE_END.search(text):
        style = '"'  # which escapes them: in single quotes PyYAML loses U+0085 and folds the others
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _represent_str)


def dump_yaml(data: object) -> str:
    """Block-style YAML of plain data, in its own order, which `compose` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, default_flow_style=False, sort_keys=False, allow_unicode=True, width=1 << 30)


def flow_yaml(data: object) -> str:
    """The same on one line, as it may stand behind a key."""
    text = yaml.dump(data, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 30)
    return text.rstrip("\n")
