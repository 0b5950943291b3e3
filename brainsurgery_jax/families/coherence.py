"""Compare the tensors of a model, and the keys of its config.json, with each other: what no single size tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.families.evidence import shape_table, sizes_of
from brainsurgery_jax.families.model import ConfigDifference, FamilyPlace, ModelType
from brainsurgery_jax.families.names import Kin
from brainsurgery_jax.families.presence import CHOSEN, identity, word_tables
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.layout.expressions import Config
from brainsurgery_jax.wording import few

GROUPS, CHOSEN_GROUPS = "n_group", "topk_group"
"""The keys of the groups of experts, one after another, and of how many of them a token takes experts from."""

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_QUANTIZATION = "quantization_config"


def features(place: FamilyPlace, kin: Mapping[str, Kin]) -> Iterator[ConfigDifference]:
    """Tensors of a layer by which classes differ, if they are those of another `model_type`."""
    own = _known(place)
    if own is None or not own.features:
        return
    head = place.family.counts["L"][0].replace("#", "*") + "."
    known = {each for model in MODELS.values() if model.family is place.family for each in model.features}
    found = {each for each in known if place.base + head + each in kin}
    fused = place.family.fused.items()
    cut = {whole.removeprefix(head) for whole, parts in fused if any(place.base + part in kin for part in parts)}
    if found == own.features or not (found or cut & own.features):
        return
    # Classes also differ in the biases that they have, so that these leave open which one is meant.
    biased = any(starred.startswith(place.base + head) and starred.endswith(".bias") for starred in kin)
    others = [model.name for model in MODELS.values() if not biased and _would_fit(model, own, found)]
    patch = place.patch({"model_type": others[0]}) if len(others) == 1 else {}
    if patch and not place.part:
        patch = identity(MODELS[others[0]])
    if lacking := sorted(own.features - found):
        message = f"model_type '{own.name}' has '{lacking[0]}' in its layers, of which there is none"
    else:
        name = next(iter(kin[place.base + head + min(found - own.features)].first.values()))
        message = f"model_type '{own.name}' has no '{name}', which loaders ignore then"
    yield ConfigDifference(message, patch, classes=not patch)


def _would_fit(model: ModelType, own: ModelType, found: set[str]) -> bool:
    return model.family is own.family and model.features == found and (model.experts is None) == (own.experts is None)


def _known(place: FamilyPlace) -> ModelType | None:
    own = MODELS.get(str(place.kind))
    return own if own is not None and own.family is place.family else None


def incomplete_layers(place: FamilyPlace, kin: Mapping[str, Kin]) -> Iterator[ConfigDifference]:
    """Tensors of attention and norms that most layers have and some lack."""
    if place.kind not in place.family.models or "L" not in place.family.counts:
        return
    head = place.base + place.family.counts["L"][0].replace("#", "*") + "."
    at = head.count("*") - 1
    held = {starred: {numbers[at] for numbers in k.numbers} for starred, k in kin.items() if starred.startswith(head)}
    every: set[int] = set().union(*held.values())
    for starred, layers in held.items():
        local = starred.removeprefix(place.base)
        lacking = sorted(every - layers)
        of_mlp = ".mlp." in local or ".experts." in local or "block_sparse_moe" in local
        if lacking and 2 * len(lacking) < len(every) and local in shape_table(place.family) and not of_mlp:
            names = [f"'{starred.replace('*', str(layer), 1)}'" for layer in lacking]
            message = f"there is no {few(names)}, which the other layers have: loaders initialize it at random"
            yield ConfigDifference(message)


def dense_layers(place: FamilyPlace, kin: Mapping[str, Kin]) -> Iterator[ConfigDifference]:
    """Keys that say which layers have no experts, if others have none."""
    own = _known(place)
    if own is None or (experts := own.experts) is None or place.kind not in place.family.models:
        return
    inside, outside = f"{place.base}layers.*.{experts.block}.experts.", f"{place.base}layers.*.{experts.dense}."
    sparse = _layers(kin, lambda starred: starred.startswith(inside))
    dense = _layers(kin, lambda starred: starred in {f"{outside}{part}.weight" for part in experts.parts}) - sparse
    layers = sorted(sparse | dense)
    if not sparse or layers != list(range(len(layers))):
        return
    for key in own.leading:
        leading = next((n for n in layers if n not in dense), len(layers))
        said = place.config.get(key)
        if isinstance(said, int) and len(dense) == leading and min(said, len(layers)) != leading:
            yield _dense(place, key, leading, dense)
    for key in own.numbered:
        listed, step = place.config.get(key), place.config.get("decoder_sparse_step", 1)
        if isinstance(listed, list) and isinstance(step, int) and step > 0:
            said = {n for n in layers if n in listed or (n + 1) % step}
            if said != dense:
                yield _dense(place, key, sorted(dense), dense, step)


def _dense(place: FamilyPlace, key: str, value: object, dense: set[int], step: int = 1) -> ConfigDifference:
    layers = few([str(layer) for layer in sorted(dense)])
    shown = f"only {layers} of the tensors have none" if dense else "every layer has some"
    patch = {key: value} | ({"decoder_sparse_step": 1} if step != 1 else {})
    return ConfigDifference(f"{place.describe(key)} for layers without experts, but {shown}", place.patch(patch))


def _layers(kin: Mapping[str, Kin], is_meant: Callable[[str], bool]) -> set[int]:
    return {numbers[0] for starred, k in kin.items() if is_meant(starred) for numbers in k.numbers}


def find_shared_heads(place: FamilyPlace, after: Config) -> Iterator[ConfigDifference]:
    """Heads that do not divide evenly among those whose keys and values they share."""
    heads, groups = (sizes_of(place.family, after).values.get(dim) for dim in place.family.heads)
    if heads and groups and heads % groups:
        message = f"{heads} heads cannot share {groups} heads of keys and values evenly: models fail when they run"
        yield ConfigDifference(message)


def expert_groups(place: FamilyPlace, after: Config) -> Iterator[ConfigDifference]:
    """Groups of experts that differ in size, or hold fewer experts than a token takes."""
    groups, there = place.config.get(GROUPS), sizes_of(place.family, after).values.get("E")
    if not isinstance(groups, int) or groups < 1 or there is None:
        return
    if there % groups:
        yield ConfigDifference(f"{place.describe(GROUPS)}, which does not divide {there} experts: models fail to run",
                               place.patch({GROUPS: 1, CHOSEN_GROUPS: 1}))  # fmt: skip
        return
    taken, chosen = place.config.get(CHOSEN_GROUPS), place.config.get(CHOSEN)
    if isinstance(taken, int) and taken > groups:
        yield ConfigDifference(
            f"{place.describe(CHOSEN_GROUPS)}, of {groups} groups", place.patch({CHOSEN_GROUPS: groups})
        )
        taken = groups
    if isinstance(taken, int) and isinstance(chosen, int) and there >= chosen > (most := taken * (there // groups)):
        message = f"{place.describe(CHOSEN)}, but {CHOSEN_GROUPS} {taken} leaves {most} experts to choose from"
        yield ConfigDifference(message, place.patch({CHOSEN: most}))


def special_tokens(
    place: FamilyPlace, after: Config, kin: Mapping[str, Kin], origins: Mapping[str, str]
) -> Iterator[ConfigDifference]:
    """Numbers of special tokens beyond the vocabulary, if its table has changed."""
    words, table = sizes_of(place.family, after).values.get("V"), word_tables(place, kin)[1]
    if words is None or (table is not None and origins.get(table) == table):
        return
    for key in _SPECIAL:
        said = place.config.get(key)
        listed = said if isinstance(said, list) else [said]
        wrong = [n for n in listed if type(n) is int and n >= words]
        if wrong:
            rest = [n for n in listed if n not in wrong]
            message = f"{place.describe(key)}, and the vocabulary has {words} words, from 0"
            yield ConfigDifference(message, place.patch({key: rest or None}))


def quantization(config: Config, avals: Mapping[str, Aval]) -> Iterator[ConfigDifference]:
    """A config of quantized weights, if no tensor is quantized."""
    said = config.get(_QUANTIZATION)
    if not isinstance(said, Mapping) or said.get("format") == "dense" or not avals:
        return
    if all(aval.dtype.is_float and aval.dtype.bits >= 16 for aval in avals.values()):
        name, aval = next(iter(avals.items()))
        method = said.get("quant_method")
        message = f"config.json has a {_QUANTIZATION}{f' of {method}' if method else ''}, but no tensor is quantized: "
        yield ConfigDifference(f"{message}'{name}' is {aval}", {_QUANTIZATION: None})
