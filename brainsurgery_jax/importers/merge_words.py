"""The step that gives the models of a merge the words of one tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.importers.config_reader import FORM
from brainsurgery_jax.importers.imported import ImportedInput
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.mergekit_config import Config
from brainsurgery_jax.importers.mergekit_words import BASE, UNION, Tokenizer, WordSource
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.vocabulary import FILES, Vocabulary, other_words, read_vocabulary
from brainsurgery_jax.wording import counted

_OWN = "words"


class SharedWords(NamedTuple):
    """What a configuration and its models make of their tokenizers: steps, inputs, and a note."""

    steps: tuple[Substep, ...] = ()
    inputs: tuple[ImportedInput, ...] = ()
    notes: tuple[str, ...] = ()


def share_words(config: Config, models: Mapping[str, Model]) -> SharedWords:
    """The step that aligns the tables of all models, if their tokenizers differ or the configuration says more. Raises
    PlanError."""
    if (asked := config.tokenizer) is None:
        return SharedWords(notes=tuple(_differences(list(models.values()))))
    first = next(iter(models.values()))
    source = first.path if asked.source == BASE else asked.source
    found = [_digest(model.path) for model in models.values()]
    have_one = len(set(found)) == 1 and found[0] is not None and (found[0] or source != UNION)
    kept = source == UNION or source.partition("+")[0] == first.path
    if kept and have_one and not asked.words and asked.multiple_of is None:
        one = f"The tokenizer files are copied from {first.path}."
        union = "The models have one tokenizer, which is their union. Rows of tables beyond it are kept."
        return SharedWords(notes=(union if source == UNION else one,))
    return _align(config, models, asked, source)


def _differences(models: Sequence[Model]) -> Iterator[str]:
    """Words of two models on this machine that have one number: their rows are merged, as mergekit does."""
    known = [(model, digest) for model in models if (digest := _digest(model.path))]
    strange = [model for model, digest in known if digest != known[0][1]]
    first = known[0][0] if strange else None
    own = None if first is None else _vocabulary(first)
    if first is None or own is None:
        return
    for model in strange:
        if (other := _vocabulary(model)) is not None and (numbers := other_words(own, other)):
            at, more = numbers[0], f", and {counted(len(numbers) - 1, 'more row')}" if len(numbers) > 1 else ""
            words = f"{own.word(at)!r} in {first.path}, {other.word(at)!r} in {model.path}{more}"
            yield f"Row {at} is merged as it is: {words}. `tokenizer_source: union` would merge rows of the same word."


def _vocabulary(model: Model) -> Vocabulary | None:
    """The words of a model with a tokenizer; None if they are not understood."""
    folder = Path(model.path).expanduser()
    try:
        return read_vocabulary(lambda name: _content(folder / name), model.alias, "models")
    except Refusal:
        return None


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _digest(path: str) -> str | None:
    """A digest of the words of a model; empty if it has no tokenizer, None if it is not on this machine."""
    folder = Path(path).expanduser()
    if not folder.exists():
        return None
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    return "" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _align(config: Config, models: Mapping[str, Model], asked: Tokenizer, source: str) -> SharedWords:
    aliases = {name: model.alias for name, model in models.items()}
    by_path = {model.path: model.alias for model in models.values()}
    inputs: tuple[ImportedInput, ...] = ()
    chosen = UNION if source == UNION else aliases.get(source, by_path.get(source))
    if chosen is None:
        chosen, inputs = _OWN, tuple(Model.find(source, _OWN, asked.span).inputs)
    payload: dict[str, object] = {"models": list(aliases.values()), "tokenizer": chosen}
    if config.base is not None:
        payload["base"] = aliases[config.base]
    if asked.words:
        payload["words"] = {text: _row(text, row, aliases, asked) for text, row in asked.words.items()}
    if asked.multiple_of is not None:
        payload["multiple_of"] = asked.multiple_of
    return SharedWords((Substep("vocab", payload),), inputs)


def _row(text: str, row: WordSource, aliases: Mapping[str, str], asked: Tokenizer) -> object:
    """Where the row of a word comes from, as a plan says it."""
    if row.model is not None and row.model not in aliases:
        message = f"the row of '{text}' comes from '{row.model}', which is not merged"
        raise refuse(message, asked.span, f"Name one of {', '.join(aliases)}.", FORM)
    alias = "zero" if row.zero else aliases[row.model] if row.model is not None else None
    if alias is not None and row.word is None and not row.force:
        return alias
    return dict(_entries(alias, row))


def _entries(alias: str | None, row: WordSource) -> Iterator[tuple[str, object]]:
    if alias is not None:
        yield "from", alias
    if row.word is not None:
        yield "word", row.word
    if row.force or alias is None:
        yield "force", row.force
