"""Positions that a class counts from the number of the padding word: they move along when words change places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.config_patch import patch_mapping
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Substep, View
from brainsurgery_jax.structure.described import Described, captured, to
from brainsurgery_jax.structure.special_words import KeptWords, Renumbered, renumber_config, renumber_whole

PAD, COUNT = "pad_token_id", "max_position_embeddings"

_WITH_TABLE = frozenset({
    "altclip", "altclip_text_model", "bridgetower", "bridgetower_text_model", "camembert", "clap", "clap_text_model",
    "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mluke", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
_WITHOUT = frozenset({
    "fsmt", "kosmos-2", "kosmos-2.5", "kosmos_2_text_model", "kosmos_2_5_text_model", "m2m_100", "mpnet", "nllb-moe",
    "pp_doclayout_v2", "prophetnet", "seamless_m4t", "seamless_m4t_v2", "speech_to_text", "speecht5", "trocr",
    "xlm-prophetnet",
})  # fmt: skip
"""The values of `model_type` whose classes in transformers 5 give the first word the position `pad_token_id + 1`: with
a table that has a row for each position, and with sines, or a table that is read in another way, so that none can
move. MPNet counts from 2 whatever the config says."""

_TABLES = re.compile(r"(^|.*\.)(embeddings\.position|layout_embeddings\.box_position)_embeddings\.weight")


class WordsInConfig(NamedTuple):
    """What config.json says once words have changed places: the patch, and the steps that move positions along."""

    patch: Mapping[str, object]
    steps: Sequence[Substep] = ()


def follow_words(view: View, model: Described, kept: KeptWords, source: str | None) -> WordsInConfig:
    """The change for words that were kept; of an alias `source` with the new tokenizer, if there is one."""
    special = renumber_config(view, model, kept, source)
    values, steps = dict(special.values), list[Substep]()
    if (padding := _move_padding(model, special, source)) is not None:
        old, new = padding
        for name, count in _tables(model):
            values[COUNT] = count + new - old
            steps += _shift(model.alias, name, count, padding)
    inner = model.place.patch(values) if values else {}
    return WordsInConfig(patch_mapping(renumber_whole(view, model, kept, source), inner), steps)


def _move_padding(model: Described, special: Renumbered, source: str | None) -> tuple[int, int] | None:
    """The old and the new number of the padding word, where positions depend on it and it changes. Raises Refusal."""
    kind, config = model.place.kind, model.place.config
    if kind not in _WITH_TABLE | _WITHOUT or config.get("position_embedding_type", "absolute") != "absolute":
        return None
    if type(old := config.get(PAD)) is not int:
        raise Refusal("structure-words", f"a model of the kind '{kind}' counts positions from {PAD}, which is not set",
                      key="alias", hint=f"Add `{PAD}` by a step `config` before this.")  # fmt: skip
    key = "order" if source is None else "tokenizer"
    new = special.values.get(PAD, old)
    if new == old:
        return None
    if type(new) is not int:
        hint = f"Put `- config: {{alias: {source}, patch: {{{PAD}: NUMBER}}}}` before this step."
        why = f"a model of the kind '{kind}' counts positions from {PAD} {old}, and the new words have none for padding"
        raise Refusal("structure-words", why, key=key, hint=f"List {old} in `order`." if source is None else hint)
    if kind in _WITHOUT or not any(_tables(model)):
        why = f"a model of the kind '{kind}' counts positions from {PAD}: all would change if it were {new}, not {old}"
        raise Refusal("structure-words", why, key=key,
                      hint=f"Use words among which {old} is the padding word.")  # fmt: skip
    return old, new


def _tables(model: Described) -> Iterator[tuple[str, int]]:
    """The tables of positions, and how many rows they have."""
    for starred, kin in model.kin.items():
        if _TABLES.fullmatch(starred):
            yield starred, next(iter(kin.first)).shape[0]


def _shift(alias: str, starred: str, count: int, padding: tuple[int, int]) -> Iterator[Substep]:
    """The steps that let as many positions follow the new number as followed the old one. The rows before are zero,
    where there were none: no word has such a position."""
    old, new = padding
    table = to(alias, captured(starred))
    yield Substep("pad_", {"target": table, "shape": [count + 1, -1]})
    before = [row if row < old else count for row in range(new)]
    yield Substep("take_", {"target": table, "indices": [*before, *range(old, count)], "dim": 0})
