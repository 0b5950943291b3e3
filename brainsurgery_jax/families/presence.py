"""Compare what exists with config.json: numbered modules, heads, biases, experts, lists, the dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from brainsurgery_jax.config_patch import DTYPE_KEYS, patch_mapping
from brainsurgery_jax.dtypes import Aval, parse_dtype
from brainsurgery_jax.families.evidence import Modules, shape_table, sizes_of
from brainsurgery_jax.families.model import HEADED, LISTS, ConfigDifference, FamilyPlace, ModelType
from brainsurgery_jax.families.names import NUMBER, Kin
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.layout.expressions import Config

TIED = "tie_word_embeddings"
CHOSEN = "num_experts_per_tok"


def gaps(modules: Iterable[Modules]) -> Iterator[ConfigDifference]:
    """Modules whose numbers are not 0, 1, 2, ..., with the moves that renumber them."""
    for each in modules:
        numbers = sorted(each.tensors)
        if numbers != list(range(len(numbers))):
            missing = next(n for n in range(len(numbers) + 1) if n not in each.tensors)
            last = each.tensors[numbers[-1]]
            found = f"there is '{last}', but no '{each.head}{missing}': loaders count from 0 without gaps"
            yield ConfigDifference(found, moves=tuple(_moves(each.head, numbers)))


def _moves(head: str, numbers: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Moves that close the gaps, one for each distance."""
    for shift, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        if shift:
            numerals = "|".join(str(number) for _, number in group)
            yield rf"{re.escape(head)}(?P<i>{numerals})\.(?P<tail>.+)", rf"{head}${{i-{shift}}}.\g<tail>"


def heads(place: FamilyPlace, kin: Mapping[str, Kin], origins: Mapping[str, str]) -> Iterator[ConfigDifference]:
    """An output table that exists although config.json ties it, or is missing although it does not."""
    outputs, table = word_tables(place, kin)
    holder = next((c for c in (place.whole, place.config) if isinstance(c.get(TIED), bool)), None)
    if holder is None or not outputs or table is None:
        return
    head = next((p + name for name in outputs for p in (place.prefix, "") if p + name in kin), None)
    # Some checkpoints hold a copy of the table: unchanged tensors are not judged.
    untouched = head is not None and (origins.get(head), origins.get(table)) == (head, table)
    if holder[TIED] and head is not None and not untouched and not place.part:
        found = f"config.json says {TIED} true, but there is '{head}', which some loaders ignore and others load"
        yield ConfigDifference(found, flag_patch(place, TIED, False))
    if not holder[TIED] and head is None and _is_headed(place) and not any("head" in starred for starred in kin):
        found = (
            f"config.json says {TIED} false, but there is no '{outputs[0]}', which loaders then initialize at random; "
            f"tied, '{table}' takes its place, as in a model that was tied before"
        )
        yield ConfigDifference(found, flag_patch(place, TIED, True))


def word_tables(place: FamilyPlace, kin: Mapping[str, Kin]) -> tuple[list[str], str | None]:
    """The names that an output table may have, without a prefix, and the table of words that there is."""
    words = [name for name, shapes in shape_table(place.family).items() if shapes[0][0] == "V"]
    outputs = [head.removeprefix("^") for head, _ in place.tied]
    return outputs, next((place.base + word for word in words if place.base + word in kin), None)


def table_in_place_of(head: str, place: FamilyPlace, kin: Mapping[str, Kin]) -> str | None:
    """The table of words that a model uses as the output table `head`, which it lacks; None if it says that the two
    are not tied, or if `head` is no output table."""
    outputs, table = word_tables(place, kin)
    named = {prefix + name for name in outputs for prefix in (place.prefix, "")}
    untied = place.whole.get(TIED, place.config.get(TIED)) is False
    return None if untied or head in kin or head not in named else table


def flag_patch(place: FamilyPlace, key: str, value: bool) -> dict[str, object]:
    """A patch that sets a flag in the part and in the whole, where they have it; in the whole if neither does."""
    own = place.patch({key: value}) if key in place.config else {}
    return patch_mapping(own, {key: value}) if key in place.whole or not own else own


def _is_headed(place: FamilyPlace) -> bool:
    classes = place.whole.get("architectures")
    return isinstance(classes, list) and any(isinstance(c, str) and c.endswith(HEADED) for c in classes)


def flags(place: FamilyPlace, kin: Mapping[str, Kin]) -> Iterator[ConfigDifference]:
    """Biases that exist although config.json has none, and the reverse."""
    for key, name in place.family.flags.items():
        declared, bias = place.config.get(key), place.base + name
        weight = bias.removesuffix("bias") + "weight"
        if not isinstance(declared, bool) or weight not in kin or declared == (bias in kin):
            continue
        shown = _first(kin[weight if declared else bias])
        lack = f"'{shown}' has no bias" if declared else f"there is '{shown}'"
        yield ConfigDifference(f"{place.describe(key)}, but {lack}", place.patch({key: not declared}))


def experts(place: FamilyPlace, kin: Mapping[str, Kin], modules: Iterable[Modules]) -> Iterator[ConfigDifference]:
    """Experts in a model whose config has none."""
    if "E" not in place.family.dims or any("expert" in key for key in place.config):
        return
    found = next((k for starred, k in kin.items() if starred.startswith(place.base) and ".experts." in starred), None)
    if found is not None:
        kind = f"model_type '{place.kind}'" if place.kind else "config.json"
        count = max((len(each.tensors) for each in modules if each.dim == "E"), default=0)
        known = None if place.part else _with_experts(place, kin)
        patch = {} if known is None or known.experts is None else {**identity(known), known.experts.count: count}
        yield ConfigDifference(f"{kind} has no experts, but there is '{_first(found)}'", patch, classes=not patch)


def _with_experts(place: FamilyPlace, kin: Mapping[str, Kin]) -> ModelType | None:
    """The `model_type` whose experts are named as those that there are, and which has all other tensors."""
    for model in MODELS.values():
        if (own := model.experts) is not None and model.family is place.family:
            names = [*own.adds, f"{own.block}.experts.*.{own.parts['gate_proj']}.weight"]
            fits = place.kind in own.of or own.block != own.dense
            if fits and all(f"{place.base}layers.*.{name}" in kin for name in names):
                return model
    return None


def identity(model: ModelType) -> dict[str, object]:
    """The keys of config.json that say what a model is."""
    return {"model_type": model.name, "architectures": [model.causal]}


def classes(place: FamilyPlace) -> Iterator[ConfigDifference]:
    """A class in `architectures` that is of another `model_type`."""
    own, named = MODELS.get(str(place.kind)), place.whole.get("architectures")
    if own is None or place.part or not isinstance(named, list):
        return
    for other in MODELS.values():
        if other is not own and other.causal in named:
            found = f"config.json says model_type '{own.name}', but {other.causal} is a class of '{other.name}'"
            yield ConfigDifference(found, {"architectures": [own.causal if c == other.causal else c for c in named]})


def experts_per_token(place: FamilyPlace, after: Config) -> Iterator[ConfigDifference]:
    """More experts per token than there are experts."""
    there, wanted = sizes_of(place.family, after).values.get("E"), place.config.get(CHOSEN)
    if there is not None and isinstance(wanted, int) and wanted > there:
        found = f"{place.describe(CHOSEN)}, and there are {there} experts: models fail when they run"
        yield ConfigDifference(found, place.patch({CHOSEN: there}))


def lists(
    place: FamilyPlace, after: Config, kin: Mapping[str, Kin], origins: Mapping[str, str]
) -> Iterator[ConfigDifference]:
    """Lists with an entry for each layer whose length is not the number of layers."""
    layers = after.get("num_hidden_layers")
    if not isinstance(layers, int) or "L" not in place.family.counts:
        return
    for key in LISTS:
        found = place.config.get(key)
        if not isinstance(found, list) or len(found) == layers or not found:
            continue
        wanted = _entries(found, layers, _sources(place.base + place.family.counts["L"][0], kin, origins))
        message = f"config.json lists {len(found)} {place.path(key)}, and there are {layers} layers"
        yield ConfigDifference(message, place.patch({key: wanted}) if wanted is not None else {})


def _entries(found: Sequence[object], layers: int, sources: Mapping[int, int]) -> list[object] | None:
    """The entries for the actual layers, if all are equal or the source of each layer is known; else None."""
    if all(entry == found[0] for entry in found):
        return [found[0]] * layers
    known = [sources.get(layer, len(found)) for layer in range(layers)]
    return [found[at] for at in known] if max(known, default=0) < len(found) else None


def _sources(place: str, kin: Mapping[str, Kin], origins: Mapping[str, str]) -> dict[int, int]:
    """For each layer, its number in the checkpoint that it comes from."""
    starred = place.replace("#", "*") + "."
    at = place.count("*")
    found: dict[int, int] = {}
    for numbers, name in ((n, name) for s, k in kin.items() if s.startswith(starred) for n, name in k.numbers.items()):
        before = NUMBER.findall(origins.get(name, ""))
        if len(before) > at:
            found.setdefault(numbers[at], int(before[at]))
    return found


def dtypes(config: Config, avals: Mapping[str, Aval]) -> Iterator[ConfigDifference]:
    """A dtype in config.json that no tensor has, if all tensors have the same one."""
    held = {aval.dtype for aval in avals.values() if aval.dtype.is_float or aval.dtype.is_opaque}
    if len(held) != 1 or "quantization_config" in config or min(d.bits for d in held) < 16:
        return
    (dtype,) = held
    for key in DTYPE_KEYS:
        declared = config.get(key)
        named = parse_dtype(declared) if isinstance(declared, str) else None
        if named is not None and named != dtype:
            name = next(n for n, aval in avals.items() if aval.dtype == dtype)
            found = f"config.json says {key} {declared}, but the tensors are {dtype}: '{name}' is {avals[name]}"
            yield ConfigDifference(found, {key: dtype.name})


def _first(kin: Kin) -> str:
    return next(iter(kin.first.values()))
