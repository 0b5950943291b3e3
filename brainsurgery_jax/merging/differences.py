"""Differences between models that are merged which no shape shows: settings of their configs, words of their
tokenizers. Each gets a note."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import View
from brainsurgery_jax.vocabulary import FILES, Vocabulary, other_words, read_vocabulary
from brainsurgery_jax.wording import few

Config = Mapping[str, object]

_USES = (
    "model_type", "num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim",
    "num_experts_per_tok", "hidden_act", "hidden_activation", "activation_function", "feed_forward_proj",
    "position_embedding_type", "partial_rotary_factor", "rotary_pct", "query_pre_attn_scalar", "rms_norm_eps",
    "layer_norm_eps", "layer_norm_epsilon",
)  # fmt: skip
"""Settings by which a model computes something else of the same tensors."""


class SettingDifference(NamedTuple):
    """A setting that two configs have, each another value."""

    key: str
    own: object
    other: object


def config_of(view: View, alias: str) -> Config:
    """The config of an alias; empty if it has none. Raises Refusal."""
    known = view.config(alias)
    return known[1] if known is not None and isinstance(known[1], Mapping) else {}


def note_settings(view: View, holder: str, models: Collection[str]) -> None:
    """Note the settings that models do not share with the alias whose config the result has."""
    try:
        configs = {alias: config_of(view, alias) for alias in (holder, *models)}
    except Refusal:  # what is no JSON is passed on as it is
        return
    for alias, config in configs.items():
        found = [f"{key} {mine!r} and {other!r}" for key, mine, other in _differing(configs[holder], config)]
        if found:
            message = f"the configs of '{holder}' and '{alias}' differ: {few(found)}. The result has the first"
            hint = "Tensors trained with one are not made for the other. A step `config` after this one changes it."
            view.note("merge-config", message, "models", hint)


def _differing(own: Config, other: Config) -> Iterator[SettingDifference]:
    """The settings that two configs both have, with other values. What one leaves out, its class may have as well."""
    own, other = _settings(own), _settings(other)
    for key in own:
        if None not in (own[key], other.get(key)) and own[key] != other[key]:
            yield SettingDifference(key, own[key], other[key])


def _settings(config: Config) -> Config:
    """Those of a config, or of the language model in it. What rotary positions are is said in the words of version 5
    of transformers; before it there were two keys."""
    config = _of_text(config)
    found = {key: config[key] for key in _USES if key in config}
    rope, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    said = {**(rope if isinstance(rope, Mapping) else {}), **(scaling if isinstance(scaling, Mapping) else {})}
    theta = config.get("rope_theta", said.pop("rope_theta", None))
    if theta is not None:  # of several kinds of layers each has its own
        found |= {"rope_theta": theta, "rope_type": said.pop("rope_type", said.pop("type", "default")), **said}
    return found


def _of_text(config: Config) -> Config:
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


class WordDifference(NamedTuple):
    """The words of one number in two models; `total`: how many numbers have two words."""

    alias: str
    number: int
    own: str | None
    other: str | None
    total: int


def note_words(view: View, holder: str, models: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> None:
    """Note words that have the number of another word in the model whose tokenizer the result has, if tensors of these
    shapes, which are merged, hold a row for each."""
    try:
        size = _of_text(config_of(view, holder)).get("vocab_size")
        table = next((name for name, shape in shapes.items() if size in shape), None)
        found = [] if table is None else list(_other_words(view, holder, models))
    except Refusal:  # a config or a tokenizer that is not understood: it is passed on as it is
        return
    for alias, number, own, other, total in found:
        more = f", and so {total - 1:,} more" if total > 1 else ""
        rows = f"row {number} of '{table}' is {own!r} in '{holder}' and {other!r} in '{alias}'{more}"
        listed = ", ".join((holder, *models))
        hint = f"`vocab: {{models: [{listed}], tokenizer: {holder}}}` before this step gives all the same."
        view.note("merge-words", f"the tokenizers of '{holder}' and '{alias}' differ: {rows}", "models", hint)


def _other_words(view: View, holder: str, models: Sequence[str]) -> Iterator[WordDifference]:
    """The models with other words than the first; files of the same bytes are not parsed."""
    files = {alias: _tokenizer(view, alias) for alias in (holder, *models)}
    strange = [alias for alias in models if files[alias] not in (None, files[holder])]
    if files[holder] is None or not strange:
        return
    own = _read(view, holder)
    for alias in strange:
        other = _read(view, alias)
        if numbers := other_words(own, other):
            first = numbers[0]
            yield WordDifference(alias, first, own.word(first), other.word(first), len(numbers))


def _tokenizer(view: View, alias: str) -> tuple[str, bytes] | None:
    """The file with the words of a model."""
    found = ((name, view.side_file(alias, name)) for name in FILES)
    return next(((name, content) for name, content in found if content is not None), None)


def _read(view: View, alias: str) -> Vocabulary:
    return read_vocabulary(lambda name: view.side_file(alias, name), alias, "models")
