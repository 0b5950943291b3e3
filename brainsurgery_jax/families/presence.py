"""What is there against what config.json says is there: numbered modules, heads, biases, experts, lists, the dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from brainsurgery_jax.config_patch import DTYPE_KEYS, patched
from brainsurgery_jax.dtypes import Aval, parse_dtype
from brainsurgery_jax.families.evidence import Modules, shape_table, sizes_of
from brainsurgery_jax.families.model import HEADED, LISTS, Difference, Place
from brainsurgery_jax.families.names import NUMBER, Kin

TIED = "tie_word_embeddings"
CHOSEN = "num_experts_per_tok"

MIXTRAL: Mapping[str, Any] = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
"""What names the one class whose experts are called `block_sparse_moe`."""


def gaps(modules: Iterable[Modules]) -> Iterator[Difference]:
    """Modules whose numbers are not 0, 1, 2, ..., with the moves that number them so."""
    for each in modules:
        numbers = sorted(each.tensors)
        if numbers != list(range(len(numbers))):
            missing = next(n for n in range(len(numbers) + 1) if n not in each.tensors)
            last = each.tensors[numbers[-1]]
            found = f"there is '{last}', but no '{each.head}{missing}': loaders count from 0 without gaps"
            yield Difference(found, moves=tuple(_moves(each.head, numbers)))


def _moves(head: str, numbers: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Moves that close the gaps: those of one distance together."""
    for shift, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        if shift:
            chosen = "|".join(str(number) for _, number in group)
            yield rf"{re.escape(head)}(?P<i>{chosen})\.(?P<tail>.+)", rf"{head}${{i-{shift}}}.\g<tail>"


def heads(place: Place, kin: Mapping[str, Kin], origins: Mapping[str, str]) -> Iterator[Difference]:
    """An output table that is there though it is said to be tied, or that is missing though it is not."""
    words = [name for name, shapes in shape_table(place.family).items() if shapes[0][0] == "V"]
    outputs = [name[1:] for name in words if name.startswith("^")]
    holder = next((c for c in (place.whole, place.config) if isinstance(c.get(TIED), bool)), None)
    table = next((place.base + word for word in words if place.base + word in kin), None)
    if holder is None or not outputs or table is None:
        return
    head = next((p + name for name in outputs for p in (place.prefix, "") if p + name in kin), None)
    # Some checkpoints hold a copy of the table beside it: what was not touched is not ours to judge.
    untouched = head is not None and (origins.get(head), origins.get(table)) == (head, table)
    if holder[TIED] and head is not None and not untouched and not place.part:
        found = f"config.json says {TIED} true, but there is '{head}', which some loaders ignore and others take"
        yield Difference(found, _flag(place, TIED, False))
    if not holder[TIED] and head is None and _is_headed(place) and not any("head" in starred for starred in kin):
        found = (
            f"config.json says {TIED} false, but there is no '{outputs[0]}', which loaders then make up at random; "
            f"tied, '{table}' takes its place, as in a model that was tied before"
        )
        yield Difference(found, _flag(place, TIED, True))


def _flag(place: Place, key: str, value: bool) -> dict[str, Any]:
    """A patch that sets a flag wherever it stands."""
    own = place.patch({key: value}) if key in place.config else {}
    return patched(own, {key: value}) if key in place.whole else own


def _is_headed(place: Place) -> bool:
    classes = place.whole.get("architectures")
    return isinstance(classes, list) and any(isinstance(c, str) and c.endswith(HEADED) for c in classes)


def flags(place: Place, kin: Mapping[str, Kin]) -> Iterator[Difference]:
    """Biases that are there though they are said not to be, and the other way round."""
    for key, name in place.family.flags.items():
        said, bias = place.config.get(key), place.base + name
        weight = bias.removesuffix("bias") + "weight"
        if not isinstance(said, bool) or weight not in kin or said == (bias in kin):
            continue
        shown = _first(kin[weight if said else bias])
        lack = f"'{shown}' stands without a bias" if said else f"there is '{shown}'"
        yield Difference(f"{place.said(key)}, but {lack}", place.patch({key: not said}))


def experts(place: Place, kin: Mapping[str, Kin], modules: Iterable[Modules]) -> Iterator[Difference]:
    """Experts in a model whose config knows of none."""
    if "E" not in place.family.dims or any("expert" in key for key in place.config):
        return
    found = next((k for starred, k in kin.items() if starred.startswith(place.base) and ".experts." in starred), None)
    if found is not None:
        kind = f"model_type '{place.kind}'" if place.kind else "config.json"
        count = max((len(each.tensors) for each in modules if each.dim == "E"), default=0)
        named = place.base + "layers.*.block_sparse_moe.experts.*.w1.weight" in kin
        patch = {**MIXTRAL, "num_local_experts": count} if named and not place.part else {}
        yield Difference(f"{kind} has no experts, but there is '{_first(found)}'", patch, classes=not patch)


def chosen(place: Place, after: Mapping[str, Any]) -> Iterator[Difference]:
    """More experts to choose for a token than there are."""
    there, wanted = sizes_of(place.family, after).values.get("E"), place.config.get(CHOSEN)
    if there is not None and isinstance(wanted, int) and wanted > there:
        found = f"{place.said(CHOSEN)}, and there are {there} experts: models fail when they run"
        yield Difference(found, place.patch({CHOSEN: there}))


def lists(
    place: Place, after: Mapping[str, Any], kin: Mapping[str, Kin], origins: Mapping[str, str]
) -> Iterator[Difference]:
    """Lists with an entry for each layer that are longer or shorter than there are layers."""
    layers = after.get("num_hidden_layers")
    if not isinstance(layers, int) or "L" not in place.family.counts:
        return
    for key in LISTS:
        found = place.config.get(key)
        if not isinstance(found, list) or len(found) == layers or not found:
            continue
        wanted = _entries(found, layers, _sources(place.base + place.family.counts["L"][0], kin, origins))
        message = f"config.json lists {len(found)} {place.path(key)}, and there are {layers} layers"
        yield Difference(message, place.patch({key: wanted}) if wanted is not None else {})


def _entries(found: Sequence[Any], layers: int, sources: Mapping[int, int]) -> list[Any] | None:
    """The entries of the layers that there are now, where all are equal, or it is known where each came from."""
    if all(entry == found[0] for entry in found):
        return [found[0]] * layers
    known = [sources.get(layer, len(found)) for layer in range(layers)]
    return [found[at] for at in known] if max(known, default=0) < len(found) else None


def _sources(place: str, kin: Mapping[str, Kin], origins: Mapping[str, str]) -> dict[int, int]:
    """For each layer the number that it had in the checkpoint it comes from."""
    starred = place.replace("#", "*") + "."
    at = place.count("*")
    found: dict[int, int] = {}
    for numbers, name in ((n, name) for s, k in kin.items() if s.startswith(starred) for n, name in k.numbers.items()):
        before = NUMBER.findall(origins.get(name, ""))
        if len(before) > at:
            found.setdefault(numbers[at], int(before[at]))
    return found


def dtypes(config: Mapping[str, Any], avals: Mapping[str, Aval]) -> Iterator[Difference]:
    """A dtype that no tensor has, where all have the same."""
    held = {aval.dtype for aval in avals.values() if aval.dtype.kind in ("float", "opaque")}
    if len(held) != 1 or "quantization_config" in config or min(d.bits for d in held) < 16:
        return
    (dtype,) = held
    for key in DTYPE_KEYS:
        said = config.get(key)
        named = parse_dtype(said) if isinstance(said, str) else None
        if named is not None and named != dtype:
            name = next(n for n, aval in avals.items() if aval.dtype == dtype)
            found = f"config.json says {key} {said}, but the tensors are {dtype}: '{name}' is {avals[name]}"
            yield Difference(found, {key: dtype.name})


def _first(kin: Kin) -> str:
    return next(iter(kin.first.values()))
