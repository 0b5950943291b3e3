"""The numbers of special words in configs, after words have changed their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.config_patch import GENERATION_CONFIG
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.protocol import SetConfig, View
from brainsurgery_jax.structure.described import Described

_ENDING = "_token_id"
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
"""Keys of lists of words by their numbers, beside those that end as above."""


class KeptWords(NamedTuple):
    """The words that a model had and has: their old and their new numbers, in pairs."""

    old: Sequence[int]
    new: Sequence[int]


def renumber_config(view: View, model: Described, kept: KeptWords, source: str | None) -> dict[str, object]:
    """The patch for the special words in config.json: as the config of `source` has them, else the same words."""
    found = None if source is None else view.config(source)
    whole = found[1] if found is not None and isinstance(found[1], Mapping) else {}
    inner = whole.get(model.place.part) if model.place.part else None
    theirs = {**whole, **(inner if isinstance(inner, Mapping) else {})}
    changed = _renumber(view, model.place.config, theirs, kept, source)
    return model.place.patch(changed) if changed else {}


def renumber_generation(view: View, model: Described, kept: KeptWords, source: str | None) -> Iterator[SetConfig]:
    """The same for generation_config.json, if there is one."""
    if (settings := _read_generation(view, model.alias)) is None:
        return
    theirs = {} if source is None else _read_generation(view, source) or {}
    if changed := _renumber(view, settings, theirs, kept, source):
        yield SetConfig(model.alias, {**settings, **changed}, GENERATION_CONFIG)


def _read_generation(view: View, alias: str) -> Mapping[str, object] | None:
    content = view.side_file(alias, GENERATION_CONFIG)
    try:
        found = None if content is None else parse_json(content)
    except ValueError as error:
        raise Refusal("io-input", f"{GENERATION_CONFIG} of '{alias}' is not JSON: {error}", key="alias",
                      hint="Correct its text.") from error  # fmt: skip
    return found if isinstance(found, dict) else None


def _renumber(
    view: View, config: Mapping[str, object], theirs: Mapping[str, object], kept: KeptWords, source: str | None
) -> dict[str, object]:
    """The keys that change, with a note on each whose words are gone."""
    places = dict[int, int]()
    for old, new in zip(kept.old, kept.new, strict=True):
        places.setdefault(old, new)
    made = dict[str, object]()
    for key, value in config.items():
        listed = value if isinstance(value, list) else [value]
        words = [word for word in listed if type(word) is int]
        if not (key.endswith(_ENDING) or key in _LISTS) or not words or len(words) < len(listed):
            continue
        if key in theirs:
            made[key] = theirs[key]
            continue
        if any(word not in places for word in words):
            hint = f"Set it by a step `config`: `config: {{patch: {{{key}: NUMBER}}}}`."
            at = "order" if source is None else "tokenizer"
            view.note("structure-words", f"{key} {value} is none of the words that stay", at, hint)
        elif isinstance(value, list):
            made[key] = [places[word] for word in value]
        else:
            made[key] = places[words[0]]
    return {key: value for key, value in made.items() if value != config[key]}
