"""What becomes of `chat_template`: a step `config` where the text is known, else a comment with that step to be
written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.importers.imported import StepComment
from brainsurgery_jax.importers.merge_models import Model, read_json_file
from brainsurgery_jax.importers.mergekit_config import Config
from brainsurgery_jax.importers.mergekit_words import BASE
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.regular_files import read_regular

_FILE, _SETTINGS, _KEY = "chat_template.jinja", "tokenizer_config.json", "chat_template"


class Chat(NamedTuple):
    """The comment above a plan on its template, and the steps at its end that set it."""

    notes: tuple[str, ...] = ()
    steps: tuple[Substep | StepComment, ...] = ()


def set_chat(config: Config, models: Mapping[str, Model], alias: str) -> Chat:
    """What gives the result the template that a configuration asks for; nothing if it says nothing."""
    if config.chat is None:
        return Chat()
    asked, place = config.chat.text, f"{_KEY} ({config.file}:{config.chat.line})"
    if asked == "auto":
        return _take_usual(config, models, alias, place)
    if "{" in asked:
        return Chat(steps=(_set(alias, asked),))
    note = f"{place} is not applied: the text of '{asked}' is part of mergekit. The last step sets a template."
    step = f"- config: {{alias: {alias}, file: {_SETTINGS}, patch: {{{_KEY}: 'TEXT'}}}}"
    return Chat((note,), (StepComment(f"Put the text of '{asked}' here:"), StepComment(step)))


def _take_usual(config: Config, models: Mapping[str, Model], alias: str, place: str) -> Chat:
    """The template that most models have."""
    if any(model.dtypes is None for model in models.values()):
        return Chat((f"{place} is not applied: not all models are on this machine, so the usual template is not known. "
                     "Download them, and convert again.",))  # fmt: skip
    found = {path: text for path, model in models.items() if (text := _template_of(model.path)) is not None}
    if not found:
        return Chat((f"{place} has no effect: no model has a template.",))
    usual = Counter(found.values()).most_common(1)[0][0]
    first = next(iter(models))
    copied = config.tokenizer is None or config.tokenizer.source in (BASE, first)
    if copied and found.get(first) == usual:
        return Chat((f"{place} is that of {first}, whose files are copied.",))
    path = next(path for path, text in found.items() if text == usual)
    return Chat((f"{place} is that of {path}, which the last step sets.",), (_set(alias, usual),))


def _set(alias: str, text: str) -> Substep:
    return Substep("config", {"alias": alias, "file": _SETTINGS, "patch": {_KEY: text}})


def _template_of(path: str) -> str | None:
    """The template of a model. A file of its own counts before what the settings of the tokenizer say."""
    folder = Path(path).expanduser()
    if (folder / _FILE).is_file():
        return read_regular(str(folder / _FILE)).decode(errors="replace")
    said = read_json_file(str(folder / _SETTINGS)).get(_KEY)
    return said if isinstance(said, str) else None
