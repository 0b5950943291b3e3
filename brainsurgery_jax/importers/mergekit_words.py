"""What a mergekit configuration says of the tokenizer of the result and of its template of chats, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from brainsurgery_jax.errors import Span
from brainsurgery_jax.importers.config_reader import ConfigReader
from brainsurgery_jax.plan.source import Map, Node, Scalar, describe, get

UNION, BASE = "union", "base"
_KEYS = ("source", "tokens", "pad_to_multiple_of")
_OF_A_WORD = ("source", "force")
_OF_A_ROW = ("kind", "model", "token", "token_id")


class WordSource(NamedTuple):
    """Where the row of a word comes from: a model (`zero`: zeros; neither: as for other words), and which of its words.
    `force`: for models that have the word, too."""

    model: str | None
    zero: bool
    word: str | int | None
    force: bool


class Tokenizer(NamedTuple):
    """The tokenizer of the result: `union`, `base`, or a model's; and rows of words that some models lack."""

    source: str
    words: Mapping[str, WordSource]
    multiple_of: int | None
    span: Span


def read_tokenizer(root: Map, reader: ConfigReader) -> Tokenizer | None:
    """The tokenizer that a configuration asks for; None if it says nothing."""
    node, table = get(root, "tokenizer_source"), get(root, "tokenizer")
    if table is None or (isinstance(table, Scalar) and table.value is None):
        return None if node is None else _read(node, Map((), node.span), reader)
    if not isinstance(table, Map) or node is not None:
        reader.complain("expected a mapping under `tokenizer`, and no `tokenizer_source` beside it", table)
        return None
    reader.check_keys(table, _KEYS, "tokenizer")
    return _read(get(table, "source"), table, reader)


class AskedChat(NamedTuple):
    """The template of chats of the result: a name, `auto`, or its text; and the line that asks for it."""

    text: str
    line: int


def read_chat(root: Map, reader: ConfigReader) -> AskedChat | None:
    """The template that a configuration asks for; None if it says nothing."""
    node = get(root, "chat_template")
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return None
    if isinstance(node, Scalar):
        return AskedChat(node.text, node.span.line)
    reader.complain(f"chat_template: expected a text, got {describe(node)}", node)
    return None


def _read(node: Node | None, table: Map, reader: ConfigReader) -> Tokenizer | None:
    if node is None or (isinstance(node, Scalar) and node.value is None):
        source = UNION if table.entries else ""
    else:
        source = reader.model(node)
    words = _words(get(table, "tokens"), reader)
    return Tokenizer(source, words, _multiple(get(table, "pad_to_multiple_of"), reader), table.span) if source else None


def _multiple(node: Node | None, reader: ConfigReader) -> int | None:
    value = node.value if isinstance(node, Scalar) else None
    if node is None or (isinstance(node, Scalar) and value is None):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    reader.complain(f"pad_to_multiple_of: expected a positive number, got {describe(node)}", node)
    return None


def _words(node: Node | None, reader: ConfigReader) -> dict[str, WordSource]:
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return {}
    if not isinstance(node, Map):
        reader.complain(f"tokens: expected a mapping, got {describe(node)}", node)
        return {}
    return {key.text: _word(value, reader) for key, value in node.entries}


def _word(node: Node, reader: ConfigReader) -> WordSource:
    """What is said of one word."""
    if not isinstance(node, Map):
        reader.complain(f"expected `source` and `force` of a word, got {describe(node)}", node)
        return WordSource(None, zero=False, word=None, force=False)
    reader.check_keys(node, _OF_A_WORD, "token")
    force, source = get(node, "force"), get(node, "source")
    forced = isinstance(force, Scalar) and force.value is True
    if force is not None and not (isinstance(force, Scalar) and isinstance(force.value, bool)):
        reader.complain(f"force: expected true or false, got {describe(force)}", force)
    if isinstance(source, Map):
        return _row(source, reader)._replace(force=forced)
    empty = source is None or (isinstance(source, Scalar) and source.value is None)
    model = None if empty or source is None else reader.model(source)
    return WordSource(model, zero=False, word=None, force=forced)


def _row(node: Map, reader: ConfigReader) -> WordSource:
    """A source of the form {kind: zero} or {kind: model_token, model: PATH, token: TEXT}."""
    reader.check_keys(node, _OF_A_ROW, "source")
    kind, model = get(node, "kind"), get(node, "model")
    nothing = WordSource(None, zero=True, word=None, force=False)
    known = kind.value if isinstance(kind, Scalar) else None
    if known == "zero":
        return nothing
    given = [n for n in (get(node, "token"), get(node, "token_id")) if isinstance(n, Scalar) and n.value is not None]
    if known != "model_token" or model is None or len(given) != 1:
        wanted = "expected {kind: zero}, or {kind: model_token, model: PATH} with token or token_id"
        reader.complain(f"{wanted}, got {describe(node)}", node)
        return nothing
    value = given[0].value
    word = value if given[0] is get(node, "token_id") and isinstance(value, int) else given[0].text
    return WordSource(reader.model(model), zero=False, word=word, force=False)
