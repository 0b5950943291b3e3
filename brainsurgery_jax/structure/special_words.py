"""The numbers of special words in configs, after words have changed their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.config_patch import GENERATION_CONFIG
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.protocol import SetConfig, View
from brainsurgery_jax.structure.described import Described

_ENDINGS = ("_token_id", "_token_index")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
"""Keys of lists of words by their numbers, beside those that end as above."""
_USUAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_OF_TEXTS = (*_USUAL, "cls_token_id", "mask_token_id", "sep_token_id", "unk_token_id")
_CONFIG = "config.json"


class KeptWords(NamedTuple):
    """The words that a model had and has: their old and their new numbers, in pairs."""

    old: Sequence[int]
    new: Sequence[int]


class Renumbered(NamedTuple):
    """What changes in a config: the values of keys, and the keys whose words are gone (their values are null)."""

    values: Mapping[str, object]
    lost: Sequence[str]


class _Special(NamedTuple):
    """A file that names special words: where it is, its keys, and those of the model with the new tokenizer, in the
    same file and in the other one (None: there is no such file, or no such model). `key`: that of the step."""

    key: str
    alias: str
    file: str
    part: str
    config: Mapping[str, object]
    theirs: Mapping[str, object] | None
    others: Mapping[str, object]


def renumber_config(view: View, model: Described, kept: KeptWords, source: str | None) -> Renumbered:
    """The special words in what config.json says of a model: as that of `source` has them, else the same words."""
    theirs = _read_config(view, model, source)
    others = {} if source is None else _read_generation(view, source) or {}
    return _renumber(
        view, _Special(_key(source), model.alias, _CONFIG, model.place.part, model.place.config, theirs, others), kept
    )


def renumber_whole(view: View, model: Described, kept: KeptWords, source: str | None) -> Mapping[str, object]:
    """The same of what config.json says beside its part for the model, such as the word that stands for an image."""
    if not model.place.part:
        return {}
    theirs = _read_config(view, model, source) or {}
    said = {key: value for key, value in model.place.whole.items() if value is not None}
    # Without a model to follow, since a key that is missing here is one of the part.
    whole = _Special(_key(source), model.alias, _CONFIG, "", said, None, {})
    named = {key: theirs[key] for key in said if key in theirs and _is_named(key)}
    rest = whole._replace(config={key: value for key, value in said.items() if key not in named})
    return {**named, **_renumber(view, rest, kept).values}


def renumber_generation(view: View, model: Described, kept: KeptWords, source: str | None) -> Iterator[SetConfig]:
    """The same for generation_config.json, if there is one."""
    if (settings := _read_generation(view, model.alias)) is None:
        return
    theirs = None if source is None else _read_generation(view, source)
    others = _read_config(view, model, source) or {}
    made = _renumber(view, _Special(_key(source), model.alias, GENERATION_CONFIG, "", settings, theirs, others), kept)
    if made.values:
        yield SetConfig(model.alias, {**settings, **made.values}, GENERATION_CONFIG)


def _read_config(view: View, model: Described, source: str | None) -> Mapping[str, object] | None:
    """What config.json of the model with the new tokenizer says, for the part of the model."""
    found = None if source is None else view.config(source)
    if found is None or not isinstance(found[1], Mapping):
        return None
    inner = found[1].get(model.place.part) if model.place.part else None
    return {**found[1], **(inner if isinstance(inner, Mapping) else {})}


def _read_generation(view: View, alias: str) -> Mapping[str, object] | None:
    content = view.side_file(alias, GENERATION_CONFIG)
    try:
        found = None if content is None else parse_json(content)
    except ValueError as error:
        raise Refusal("io-input", f"{GENERATION_CONFIG} of '{alias}' is not JSON: {error}", key="alias",
                      hint="Correct its text.") from error  # fmt: skip
    return found if isinstance(found, dict) else None


def _key(source: str | None) -> str:
    return "order" if source is None else "tokenizer"


def _is_named(key: str) -> bool:
    return key.endswith(_ENDINGS) or key in _LISTS


def _renumber(view: View, special: _Special, kept: KeptWords) -> Renumbered:
    """The keys that change, with a note on each whose words are gone."""
    places = dict[int, int]()
    for old, new in zip(kept.old, kept.new, strict=True):
        places.setdefault(old, new)
    made, lost, theirs = dict[str, object](), list[str](), special.theirs or {}
    for key in (*special.config, *(key for key in _USUAL if key not in special.config)):
        value = special.config.get(key)
        listed = value if isinstance(value, list) else [value]
        words = [word for word in listed if type(word) is int]
        if value is None and key in _OF_TEXTS:
            # transformers writes null for a word that there is not, and leaves such keys out elsewhere.
            made |= {key: their} if (their := theirs.get(key)) is not None else {}
        elif not _is_named(key) or not words or len(words) < len(listed):
            continue
        elif key in theirs:
            made[key] = theirs[key]
        elif all(word in places for word in words):
            made[key] = [places[word] for word in words] if isinstance(value, list) else places[words[0]]
        elif key in special.others:
            made[key] = special.others[key]
        else:
            rest = [places[word] for word in words if word in places]
            made[key] = rest or None
            lost += [] if rest else [key]
            _note_lost(view, special, key)
    return Renumbered({key: value for key, value in made.items() if value != special.config.get(key)}, lost)


def _note_lost(view: View, special: _Special, key: str) -> None:
    """Note a key with words that are gone: their numbers would be those of other words."""
    setting = f"{special.part}: {{{key}: NUMBER}}" if special.part else f"{key}: NUMBER"
    file = f"file: {special.file}, " if special.file != _CONFIG else ""
    hint = f"Set it by a step behind this: `config: {{alias: {special.alias}, {file}patch: {{{setting}}}}}`."
    listed = isinstance(value := special.config[key], list)
    gone = "has words that do not stay, which are left out" if listed else "is none of the words that stay: it is null"
    view.note("structure-words", f"{key} {value} of {special.file} {gone}", special.key, hint)
