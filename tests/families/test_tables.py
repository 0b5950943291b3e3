"""The tables against models as `transformers` saves them: every tensor is described, by the sizes that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import transformers

from brainsurgery_jax.families.compare import places
from brainsurgery_jax.families.evidence import formula, shape_table, sizes_of
from brainsurgery_jax.families.names import kin_of
from brainsurgery_jax.families.roles import BARE, in_layers, layer_roles
from brainsurgery_jax.families.tables import FAMILIES, MODELS
from tests.families.models import CLASSES, saved

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

ROWS = {
    "gpt2": "gpt2", "llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
    "gemma3": "gemma3_text", "olmo2": "olmo2", "olmo3": "olmo3", "mixtral": "mixtral", "qwen3_moe": "qwen3_moe",
    "olmoe": "olmoe", "flex_olmo": "flex_olmo", "deepseek_v3": "deepseek_v3", "gpt_neox": "gpt_neox", "bert": "bert",
    "t5": "t5", "vit": "vit", "whisper": "whisper", "phi3": "phi3",
    "qwen2_moe": "qwen2_moe", "gpt_oss": "gpt_oss", "gemma": "gemma", "granite": "granite", "ministral": "ministral",
    "olmo": "olmo", "smollm3": "smollm3",
}  # fmt: skip
"""A tiny model of each `model_type` that has an entry."""

HEADS_OF_TASKS = {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", ROWS)
def test_every_tensor_of_a_model_is_described_by_the_sizes_that_it_has(name: str) -> None:
    found = saved(name)
    kin = kin_of(found.avals)
    (place,) = places(found.config, kin)
    table, sizes = shape_table(place.family), sizes_of(place.family, place.config)
    for starred, group in kin.items():
        if starred in HEADS_OF_TASKS:
            continue
        starts = ((place.base, ""), (place.prefix, "^"), ("", "^"))
        names = [mark + starred[len(start) :] for start, mark in starts if starred.startswith(start)]
        shapes = next(table[name] for name in names if name in table)
        for aval in group.first:
            fitting = [s for s in shapes if len(s) == len(aval.shape)]
            made = [tuple(n if t == "_" else sizes.of(formula(t)) for t, n in zip(s, aval.shape, strict=True))
                    for s in fitting]  # fmt: skip
            assert aval.shape in made, (starred, aval, shapes)


@pytest.mark.parametrize("name", ROWS)
def test_an_entry_names_the_class_of_the_model_and_whether_its_words_are_tied(name: str) -> None:
    config, model, _ = CLASSES[name]
    entry = MODELS[ROWS[name]]
    assert entry.causal == model
    cls = getattr(transformers, config)
    assert cls.model_type == entry.name
    if entry.family.tied:
        assert cls().tie_word_embeddings == entry.tied


def _default(made: Any, key: str) -> Any:
    """What a class takes for a key, also one of older files."""
    if key not in ("rope_theta", "rope_local_base_freq", "rope_scaling"):
        return getattr(made, key, None)
    rope = made.rope_parameters
    kind = "sliding_attention" if key == "rope_local_base_freq" else "full_attention"
    given = rope.get(kind, rope)
    return given if key == "rope_scaling" else given["rope_theta"]


@pytest.mark.parametrize("name", ROWS)
def test_every_module_of_a_layer_has_a_role_if_the_entry_has_any(name: str) -> None:
    entry, found = MODELS[ROWS[name]], saved(name)
    kin = kin_of(found.avals)
    (place,) = places(found.config, kin)
    head = in_layers(entry.family, "") if entry.roles else "none."
    roles = layer_roles(entry).items() if entry.roles else ()
    named = {module if role in BARE else f"{module}.weight" for role, module in roles}
    local = {starred.removeprefix(place.base) for starred in kin}
    inside = {each.removeprefix(head) for each in local if each.startswith(head) and not each.endswith(".bias")}
    assert inside <= named
    assert {head + each for each in named} <= shape_table(entry.family).keys()


@pytest.mark.parametrize("name", ROWS)
def test_defaults_and_cycles_of_layers_are_those_of_the_class(name: str) -> None:
    entry = MODELS[ROWS[name]]
    made = getattr(transformers, CLASSES[name][0])()
    for key, value in entry.defaults.items():
        found = _default(made, key)
        assert value.items() <= found.items() if isinstance(value, Mapping) else found == value, key
    types = getattr(made, "layer_types", None)
    if entry.cycle:
        assert types
        turns = [entry.cycle[layer % len(entry.cycle)] for layer in range(len(types))]
        assert types == turns


def test_every_entry_has_a_row_here_and_a_family_in_the_list() -> None:
    assert set(ROWS.values()) == set(MODELS)
    assert {entry.family for entry in MODELS.values()} <= set(FAMILIES)
