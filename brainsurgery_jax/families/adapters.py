"""Compare adapter_config.json with the tensors of a LoRA adapter, and derive what follows from names and shapes.

PEFT stores `B A` of a module `m` as `base_model.model.m.lora_A.weight` [rank, in] and `...lora_B.weight` [out, rank];
for a table as `lora_embedding_A` [rank, words] and `lora_embedding_B` [width, rank]. Whole tensors belong to modules
that were trained in full. Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, NamedTuple, TypeVar

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.families.model import ConfigDifference
from brainsurgery_jax.layout.expressions import Config
from brainsurgery_jax.select import names_matched

HEAD = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
_RANK_AXIS = {"lora_A.weight": 0, "lora_B.weight": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
_EXTRA = re.compile(r"(.+)\.(lora_magnitude_vector(?:\.weight)?|lora_B\.bias)")
_WHOLE = re.compile(r"(.+)\.(?:weight|bias)")
_NUMBER = re.compile(r"(.*?)(?:^|\.)(\d+)\.(.+)")

WRAPPED = (".base_layer.", ".original_module.", "trainable_tokens_")
"""Parts of the names of tensors that PEFT saves with an adapter but that belong to no module of it."""

TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "shared", "word_embeddings")
"""Modules that PEFT saves whole after the vocabulary was resized, regardless of the config."""

CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Modules of GPT-2 that hold their weights as [in, out]."""

N = TypeVar("N", bound=float)


class SettingType(NamedTuple):
    """What PEFT takes for a setting: the types, also of the values of a mapping, in words, and as an example."""

    types: tuple[type, ...]
    wanted: str
    example: str
    values: tuple[type, ...] = ()

    def fits(self, value: object) -> bool:
        """Whether PEFT takes a value."""
        inner = value.values() if self.values and isinstance(value, Mapping) else ()
        return _is_of(value, self.types) and all(_is_of(each, self.values) for each in inner)


def _is_of(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) and (not isinstance(value, float) or isfinite(value))


_SWITCH = SettingType((bool,), "true or false", "false")
_NAMES = SettingType((list,), "a list of names", "[lm_head]")
SETTING_TYPES: Mapping[str, SettingType] = {
    "r": SettingType((int,), "a whole number", "8"),
    "lora_alpha": SettingType((int, float), "a number", "16"),
    "target_modules": SettingType((list, str), "a list of names, or a regular expression", "[q_proj]"),
    "modules_to_save": _NAMES,
    "target_parameters": _NAMES._replace(example="[experts.down_proj]"),
    "rank_pattern": SettingType((Mapping,), "a mapping of patterns to ranks", "{q_proj: 8}", (int,)),
    "alpha_pattern": SettingType((Mapping,), "a mapping of patterns to alphas", "{q_proj: 16}", (int, float)),
    "use_rslora": _SWITCH,
    "use_dora": _SWITCH,
    "lora_bias": _SWITCH,
    "fan_in_fan_out": _SWITCH,
    "trainable_token_indices": SettingType((list, Mapping), "a list of rows, or one for each table", "[0, 1]"),
}
"""What PEFT takes, as far as it stops at anything else."""

_NEVER_NULL = ("r", "lora_alpha")
"""Settings for which null stands for no default."""


def wrong_settings(config: Config) -> Iterator[tuple[str, SettingType]]:
    """The settings with a value that PEFT does not take."""
    for key, kind in SETTING_TYPES.items():
        if key in config and not kind.fits(config[key]) and (config[key] is not None or key in _NEVER_NULL):
            yield key, kind


class FactorTensor(NamedTuple):
    """A tensor that shows the rank of a module."""

    rank: int
    name: str
    aval: Aval


class Adapter(NamedTuple):
    """The tensors of an adapter: factors and whole tensors by module. `dora` and `biased`: the name of one such tensor,
    empty if there is none. `others`: names that are not part of LoRA."""

    factors: Mapping[str, tuple[FactorTensor, ...]]
    whole: Mapping[str, str]
    dora: str
    biased: str
    others: tuple[str, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module, from its first factor."""
        return {module: found[0].rank for module, found in self.factors.items()}


def read_adapter(avals: Mapping[str, Aval]) -> Adapter:
    """The adapter that tensors form."""
    factors: dict[str, list[FactorTensor]] = {}
    whole: dict[str, str] = {}
    extras = {"lora_magnitude_vector": "", "lora_B.bias": ""}
    others: list[str] = []
    for name, aval in avals.items():
        short = name.removeprefix(HEAD)
        if short == name:
            others.append(name)
        elif (found := _FACTOR.fullmatch(short)) and len(aval.shape) > _RANK_AXIS[found[2]]:
            factors.setdefault(found[1], []).append(FactorTensor(aval.shape[_RANK_AXIS[found[2]]], name, aval))
        elif found := _EXTRA.fullmatch(short):
            extras[found[2].removesuffix(".weight")] = name
        elif "lora_" in short:
            others.append(name)
        elif (found := _WHOLE.fullmatch(short)) and not any(part in short for part in WRAPPED):
            whole.setdefault(found[1], name)
    kept = {module: tuple(found) for module, found in factors.items()}
    return Adapter(kept, whole, extras["lora_magnitude_vector"], extras["lora_B.bias"], tuple(others))


# --- What follows -----------------------------------------------------------------------------------------------------


def derive_config(adapter: Adapter) -> dict[str, object]:
    """The config that follows from names and shapes: all keys that PEFT needs and does not default to, except
    `lora_alpha`."""
    ranks = adapter.ranks
    usual = usual_rank(ranks)
    made: dict[str, object] = {
        "peft_type": "LORA",
        "r": usual,
        "target_modules": words_for(ranks),
        "modules_to_save": words_for(adapter.whole),
        "rank_pattern": pattern_of(ranks, usual),
        "use_dora": bool(adapter.dora),
        "lora_bias": bool(adapter.biased),
        "fan_in_fan_out": all(module.endswith(CONV1D) for module in ranks),
    }
    return {key: value for key, value in made.items() if value}


def usual_rank(ranks: Mapping[str, int]) -> int:
    """The most frequent rank; the largest one if several are equally frequent."""
    return _usual(ranks.values())


def _usual(values: Iterable[N]) -> N:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def pattern_of(values: Config, usual: object) -> dict[str, object]:
    """Patterns for the modules with an unusual value: one pattern for all layers where they agree."""
    by_word: dict[str, set[object]] = {}
    for module, value in values.items():
        by_word.setdefault(_tail(module), set()).add(value)
    alike = {word for word, found in by_word.items() if len(found) == 1}
    words = {module: _tail(module) if _tail(module) in alike else module for module in values}
    return {words[module]: value for module, value in values.items() if value != usual}


def words_of(wanted: Collection[str], modules: Collection[str], *, anywhere: bool) -> list[str]:
    """Words that select exactly these of the modules, as short as names go: what is behind the number of a layer, where
    all modules that end so are wanted, else whole names. `anywhere`: a word may begin within a part of a name."""
    mark = "" if anywhere else "."
    found: dict[str, None] = {}
    for module in wanted:
        parts = module.split(".")
        tails = [".".join(parts[at:]) for at in range(len(parts) - 1, 0, -1) if not parts[at].isdecimal()]
        short = (t for t in tails if all(m in wanted for m in modules if m == t or m.endswith(mark + t)))
        found[next(short, module)] = None
    return list(found)


def patterns_of(values: Mapping[str, N], modules: Collection[str]) -> dict[str, N]:
    """Patterns that give modules these values, and match none of the others."""
    found: dict[str, N] = {}
    for value in sorted(set(values.values())):
        wanted = [module for module, own in values.items() if own == value]
        found |= dict.fromkeys(words_of(wanted, modules, anywhere=False), value)
    return found


def words_for(modules: Iterable[str]) -> list[str]:
    """The words that select exactly these modules: the name behind the layer's number if all layers have it, whole
    names if only some do."""
    by_word: dict[str, list[str]] = {}
    for module in modules:
        by_word.setdefault(_tail(module), []).append(module)
    return [word for tail, members in by_word.items() for word in ([tail] if _is_everywhere(members) else members)]


def _tail(module: str) -> str:
    found = _NUMBER.fullmatch(module)
    return module if found is None else found[3]


def _is_everywhere(members: Sequence[str]) -> bool:
    """Whether modules with the same tail are those of the layers 0, 1, 2, ..."""
    numbers: dict[str, set[int]] = {}
    for module in members:
        if (found := _NUMBER.fullmatch(module)) is not None:
            numbers.setdefault(found[1], set()).add(int(found[2]))
    return all(found == set(range(len(found))) for found in numbers.values())


# --- What differs -----------------------------------------------------------------------------------------------------


def adapter_differences(config: Config, adapter: Adapter) -> tuple[ConfigDifference, ...]:
    """The differences between an adapter_config.json and the tensors. Adapters other than LoRA are not judged."""
    if config.get("peft_type") != "LORA" or not adapter.factors or config.get("target_parameters"):
        return ()
    return (
        *_ranks(config, adapter),
        *_targets(config, adapter),
        *_whole_modules(config, adapter),
        *_kinds(config, adapter),
    )


def _ranks(config: Config, adapter: Adapter) -> Iterator[ConfigDifference]:
    for module, (first, *rest) in adapter.factors.items():
        other = next((f for f in rest if f.rank != first.rank), None)
        if other is not None:
            shapes = f"'{first.name}' is {first.aval}, '{other.name}' is {other.aval}"
            yield ConfigDifference(f"the factors of '{module}' do not fit: {shapes}")
            return
    usual, pattern = config.get("r"), config.get("rank_pattern") or {}
    if type(usual) is not int or not isinstance(pattern, Mapping):
        return
    wrong = [m for m, rank in adapter.ranks.items() if rank != value_for(m, pattern, usual)]
    if not wrong:
        return
    shown = adapter.factors[wrong[0]][0]
    said = value_for(wrong[0], pattern, usual)
    key = "r" if said == usual and len(wrong) == len(adapter.ranks) else "rank_pattern"
    message = f"adapter_config.json says rank {said} for '{wrong[0]}', but the tensors have {shown.rank}: "
    yield ConfigDifference(f"{message}'{shown.name}' is {shown.aval}", _rank_patch(config, adapter, whole=key == "r"))


def value_for(module: str, pattern: Mapping[str, Any], usual: float) -> float:
    """What a rank_pattern or alpha_pattern says of a module, where none of its patterns matches `usual`."""
    return next((rank for key, rank in pattern.items() if _selects(key, module)), usual)


def _selects(key: str, module: str) -> bool:
    """Whether a key of a rank_pattern or alpha_pattern, a regex, names a module or its end behind a dot."""
    return module in names_matched(rf"(.*\.|)({key})", (module,))


def _rank_patch(config: Mapping[str, Any], adapter: Adapter, *, whole: bool) -> dict[str, object]:
    """A patch with the actual ranks (with `whole`, also a new default), and alphas that keep the scale of every
    product."""
    ranks = adapter.ranks
    usual = usual_rank(ranks) if whole else config["r"]
    alphas = {module: _alpha_to_keep_scale(config, module, rank) for module, rank in ranks.items()}
    alpha = _usual(alphas[m] for m, rank in ranks.items() if rank == usual) if whole else config.get("lora_alpha", 8)
    new = {
        "r": usual,
        "rank_pattern": _pattern(config, "rank_pattern", ranks, usual),
        "lora_alpha": alpha,
        "alpha_pattern": _pattern(config, "alpha_pattern", alphas, alpha),
    }
    return {key: value for key, value in new.items() if value != config.get(key, 8 if key == "lora_alpha" else {})}


def keep_scales(config: Mapping[str, Any], adapter: Adapter) -> dict[str, object]:
    """A config with the actual ranks, and alphas that keep the scale of every product. `config` fits the adapter as it
    was; `r` is the rank of most modules."""
    return {**config, **(_rank_patch(config, adapter, whole=True) if adapter.factors else {})}


def _alpha_to_keep_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The alpha that scales the product of a module with this rank as the config does."""
    before = value_for(module, config.get("rank_pattern") or {}, config["r"])
    alpha = value_for(module, config.get("alpha_pattern") or {}, config.get("lora_alpha", 8))
    if not _is_number(alpha) or not _is_number(before) or before <= 0:  # what such a config means, nobody can keep
        return alpha
    scaled = alpha * (sqrt(rank / before) if config.get("use_rslora") else rank / before)
    return int(scaled) if scaled == int(scaled) else scaled


_LARGEST = 1e30  # of numbers in configs: products of two are finite


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _pattern(config: Mapping[str, Any], key: str, values: Mapping[str, float], usual: float) -> dict[str, object]:
    """The patterns of a config with the actual values, and patterns for the modules that none of them selects."""
    there = config.get(key) or {}
    chosen = {word: [v for m, v in values.items() if _selects(word, m)] for word in there}
    kept = {word: _usual(found or [usual]) for word, found in chosen.items()}
    wrong = {m: v for m, v in values.items() if value_for(m, kept, usual) != v}
    return {**patterns_of(wrong, values), **kept}  # the first that matches counts


def _targets(config: Config, adapter: Adapter) -> Iterator[ConfigDifference]:
    targets = config.get("target_modules")
    if targets == "all-linear" or not isinstance(targets, str | list):
        return
    missed = [m for m in adapter.factors if not is_target(m, targets)]
    listed = targets if isinstance(targets, list) else []
    idle = [t for t in listed if not any(is_target(m, [t]) for m in adapter.factors)]
    patch = {"target_modules": [*(t for t in listed if t not in idle), *words_for(missed)]}
    if isinstance(targets, str):
        patch = {"target_modules": words_for(adapter.factors)}
    if missed:
        found = f"does not list '{missed[0]}' among target_modules, but there is '{adapter.factors[missed[0]][0].name}'"
        yield ConfigDifference(f"adapter_config.json {found}: PEFT ignores it", patch)
    elif idle and not config.get("layers_to_transform"):
        found = f"lists '{idle[0]}' among target_modules, but there are no factors of it"
        yield ConfigDifference(f"adapter_config.json {found}", patch)


def is_target(module: str, targets: str | Sequence[object]) -> bool:
    """Whether target_modules, a list or a regular expression, names a module."""
    if isinstance(targets, str):
        return module in names_matched(targets, (module,))
    return any(module == target or module.endswith(f".{target}") for target in targets)


def is_within(module: str, listed: object) -> bool:
    """Whether modules_to_save names a module, or one that it is part of."""
    parts = module.split(".")
    outer = [".".join(parts[: at + 1]) for at in range(len(parts))]
    return isinstance(listed, list) and any(name.endswith(tuple(map(str, listed))) for name in outer)


def _whole_modules(config: Config, adapter: Adapter) -> Iterator[ConfigDifference]:
    listed = config.get("modules_to_save") or []
    if not isinstance(listed, list):
        return
    missed = [m for m in adapter.whole if not is_within(m, [*listed, *TABLES])]
    idle = [t for t in listed if not any(is_within(m, [t]) for m in adapter.whole)]
    patch = {"modules_to_save": [*(t for t in listed if t not in idle), *words_for(missed)] or None}
    if missed:
        found = f"does not list '{missed[0]}' among modules_to_save, but there is '{adapter.whole[missed[0]]}'"
        yield ConfigDifference(f"adapter_config.json {found}", patch)
    elif idle:
        found = f"lists '{idle[0]}' among modules_to_save, but there is no tensor of it"
        yield ConfigDifference(f"adapter_config.json {found}", patch)


def _kinds(config: Config, adapter: Adapter) -> Iterator[ConfigDifference]:
    for key, name, what in (
        ("use_dora", adapter.dora, "no magnitude vector"),
        ("lora_bias", adapter.biased, "no bias of a factor"),
    ):
        said = bool(config.get(key, False))
        if said != bool(name):
            found = f"there is '{name}'" if name else f"there is {what}"
            yield ConfigDifference(f"adapter_config.json says {key} {str(said).lower()}, but {found}", {key: not said})
