"""What becomes of `chat_template`: a plan copies the files of a tokenizer as they are, and a comment says what is left
to be done by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.importers.merge_models import Model, read_json_file
from brainsurgery_jax.importers.mergekit_config import Config
from brainsurgery_jax.importers.mergekit_words import BASE
from brainsurgery_jax.regular_files import read_regular

_FILE, _SETTINGS, _KEY = "chat_template.jinja", "tokenizer_config.json", "chat_template"
_COPIED = "The files of the tokenizer are copied as they are."
_RESULT = f"merged/{_FILE}"


class ChatTemplate(NamedTuple):
    """The template of a model, and how it gets into the result."""

    text: str
    by_hand: str


def note_on_chat(config: Config, models: Mapping[str, Model]) -> tuple[str, ...]:
    """The comment on the template that a configuration asks for; none if it says nothing."""
    if config.chat is None:
        return ()
    return (f"{_KEY} ({config.file}:{config.chat.line}) {_describe(config, config.chat.text, models)}",)


def _describe(config: Config, asked: str, models: Mapping[str, Model]) -> str:
    if asked != "auto":
        what = "that text" if "{" in asked else f"the text of the template '{asked}'"
        return f"is not applied. {_COPIED} When the plan has run, write {what} to {_RESULT}."
    if any(model.dtypes is None for model in models.values()):
        return f"is not applied: not all models are on this machine, so the usual template is not known. {_COPIED}"
    found = {path: own for path, model in models.items() if (own := _template_of(model.path)) is not None}
    if not found:
        return "has no effect: no model has a template."
    usual = Counter(own.text for own in found.values()).most_common(1)[0][0]
    path = next(path for path, own in found.items() if own.text == usual)
    first = next(iter(models))
    copied = config.tokenizer is None or config.tokenizer.source in (BASE, first)
    if copied and first in found and found[first].text == usual:
        return f"is that of {first}, whose files are copied."
    return f"is not applied: the usual one is that of {path}. {_COPIED} When the plan has run, {found[path].by_hand}."


def _template_of(path: str) -> ChatTemplate | None:
    """The template of a model. A file of its own counts before what the settings of the tokenizer say."""
    folder = Path(path).expanduser()
    if (folder / _FILE).is_file():
        text = read_regular(str(folder / _FILE)).decode(errors="replace")
        return ChatTemplate(text, f"copy it: `cp {folder / _FILE} {_RESULT}`")
    said = read_json_file(str(folder / _SETTINGS)).get(_KEY)
    by_hand = f"write the text of `{_KEY}` in {folder / _SETTINGS} to {_RESULT}"
    return ChatTemplate(said, by_hand) if isinstance(said, str) else None
