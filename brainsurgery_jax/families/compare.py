"""Compare a config.json with the tensors beside it, by names and shapes, and find the patch that resolves
differences."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.families.coherence import (
    dense_layers,
    expert_groups,
    features,
    find_shared_heads,
    incomplete_layers,
    quantization,
    special_tokens,
)
from brainsurgery_jax.families.evidence import Observation, key_text, modules_of, observe
from brainsurgery_jax.families.model import PARTS, UNLIKE, WHOLE, ConfigDifference, Family, FamilyPlace
from brainsurgery_jax.families.names import Kin, kin_of
from brainsurgery_jax.families.presence import (
    classes,
    dtypes,
    experts,
    experts_per_token,
    flags,
    gaps,
    heads,
    lists,
    table_in_place_of,
)
from brainsurgery_jax.families.solve import Solved, solve
from brainsurgery_jax.families.tables import FAMILIES
from brainsurgery_jax.layout.expressions import Config

_DIM = re.compile(r"\b[A-Z]\b")


def differences(
    config: Config, avals: Mapping[str, Aval], origins: Mapping[str, str] | None = None
) -> tuple[ConfigDifference, ...]:
    """The differences between a config.json and the tensors. Tensors that no family describes are not judged.

    `origins`: for tensors unchanged since they were read, their names in the checkpoint.
    """
    kin = kin_of(avals)
    recognised = tuple(places(config, kin))
    found = [each for place in recognised for each in _of_place(place, kin, origins or {})]
    return (*found, *dtypes(config, avals), *quantization(config, avals)) if recognised else ()


def describes(config: Config, avals: Mapping[str, Aval]) -> bool:
    """Whether a family is known whose names the tensors have."""
    return next(places(config, kin_of(avals)), None) is not None


def tied_table(config: Config, avals: Mapping[str, Aval], head: str) -> str | None:
    """The tensor that a model with this config uses as the output table `head`, which it lacks; None if there is none
    that is known."""
    kin = kin_of(avals)
    found = (table_in_place_of(head, place, kin) for place in places(config, kin))
    return next(filter(None, found), None)


def places(config: Config, kin: Mapping[str, Kin]) -> Iterator[FamilyPlace]:
    """The families in a checkpoint: a name that marks one exists, and config.json has keys of it."""
    parts = [part for part in PARTS if isinstance(config.get(part.key), Mapping)]
    for part in (WHOLE._replace(prefixes=("",)) if parts else WHOLE, *parts):
        own = _mapping(config, part.key) if part.key else config
        kind = own.get("model_type", config.get("model_type"))
        for family in FAMILIES if kind not in UNLIKE else ():
            # If the whole config has keys of this family, tensors without a prefix do not belong to a part.
            alone = not part.key or not _has_keys(family, config)
            prefixes = [p for p in part.prefixes if alone or p not in ("", "model.")]
            prefix, base = _find_mark(family, prefixes, kin) if _has_keys(family, own) else ("", None)
            if base is not None:
                yield FamilyPlace(family, part.key, own, config, prefix, base)


def _mapping(config: Config, key: str) -> Config:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _find_mark(family: Family, prefixes: Collection[str], kin: Mapping[str, Kin]) -> tuple[str, str | None]:
    """The prefix and the base below which a name marks a family; base None if there is none."""
    for prefix in prefixes:
        for base in family.bases:
            if any(prefix + base + mark in kin for mark in family.marks):
                return prefix, prefix + base
    return "", None


def _has_keys(family: Family, config: Config) -> bool:
    """Whether a config contains the number of modules."""
    return any(key in config for dim in family.counts for key in family.dims[dim])


def _of_place(place: FamilyPlace, kin: Mapping[str, Kin], origins: Mapping[str, str]) -> Iterator[ConfigDifference]:
    modules = tuple(modules_of(place.family, place.base, kin))
    distinct: dict[object, Observation] = {}
    for each in observe(place, kin, modules):
        distinct.setdefault((each.formulas, each.found), each)
    result = solve(place.family, place.config, list(distinct.values()))
    for change in result.solved:
        yield _describe(place, change)
    for each in result.unexplained if place.kind in place.family.models else ():
        yield ConfigDifference(f"no value of {_sizes(place, each)} results in {each.found}, but {each.about}")
    yield from lists(place, result.config, kin, origins)
    yield from gaps(modules)
    yield from heads(place, kin, origins)
    yield from flags(place, kin)
    yield from experts(place, kin, modules)
    yield from experts_per_token(place, result.config)
    yield from classes(place)
    yield from features(place, kin)
    yield from incomplete_layers(place, kin)
    yield from dense_layers(place, kin)
    yield from find_shared_heads(place, result.config)
    yield from expert_groups(place, result.config)
    yield from special_tokens(place, result.config, kin, origins)


def _describe(place: FamilyPlace, change: Solved) -> ConfigDifference:
    value = change.patch[change.key]
    others = ", ".join(f"{key} {other}" for key, other in change.patch.items() if key != change.key)
    shared = _sizes(place, change.seen) if change.seen.axis is not None else change.key
    reason = change.seen.about + (f" ({shared} = {change.seen.found})" if shared != change.key else "")
    found = f"but the tensors have {value}{f' with {others}' if others else ''}: {reason}"
    return ConfigDifference(f"{place.describe(change.key)}, {found}", place.patch(change.patch))


def _sizes(place: FamilyPlace, each: Observation) -> str:
    """The formulas for an observed size, with the keys of the config."""
    texts = (
        _DIM.sub(lambda dim: key_text(place.family, dim[0], place.config), f.text.replace("*", " * "))
        for f in each.formulas
    )
    return " or ".join(texts)
