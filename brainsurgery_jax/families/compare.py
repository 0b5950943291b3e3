"""A config.json against the tensors beside it, from names and shapes: what each says, and the patch that settles it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.families.decoders import DECODERS
from brainsurgery_jax.families.encoders import ENCODERS
from brainsurgery_jax.families.evidence import Seen, key_text, modules_of, seen
from brainsurgery_jax.families.model import PARTS, UNLIKE, WHOLE, Difference, Family, Place
from brainsurgery_jax.families.names import Kin, kin_of
from brainsurgery_jax.families.presence import chosen, dtypes, experts, flags, gaps, heads, lists
from brainsurgery_jax.families.solve import Solved, solve

FAMILIES: tuple[Family, ...] = (*DECODERS, *ENCODERS)
"""Every family, in the order in which they are tried."""

_DIM = re.compile(r"\b[A-Z]\b")


def differences(
    config: Mapping[str, Any], avals: Mapping[str, Aval], origins: Mapping[str, str] | None = None
) -> tuple[Difference, ...]:
    """Where a config.json says otherwise than the tensors. Nothing is said of what no family describes.

    `origins`: of tensors that are as the checkpoint has them, what they are called there.
    """
    kin = kin_of(avals)
    recognised = tuple(places(config, kin))
    found = [each for place in recognised for each in _of_place(place, kin, origins or {})]
    return (*found, *dtypes(config, avals)) if recognised else ()


def places(config: Mapping[str, Any], kin: Mapping[str, Kin]) -> Iterator[Place]:
    """The families that are recognised: a name that marks one is there, and config.json has keys of it."""
    parts = [part for part in PARTS if isinstance(config.get(part.key), Mapping)]
    for part in (WHOLE._replace(prefixes=("",)) if parts else WHOLE, *parts):
        own = config[part.key] if part.key else config
        kind = own.get("model_type", config.get("model_type"))
        for family in FAMILIES if kind not in UNLIKE else ():
            # Where the whole has keys of its own, tensors without a prefix are not those of a part.
            alone = not part.key or not _has_keys(family, config)
            prefixes = [p for p in part.prefixes if alone or p not in ("", "model.")]
            prefix, base = _marked(family, prefixes, kin) if _has_keys(family, own) else ("", None)
            if base is not None:
                yield Place(family, part.key, own, config, prefix, base)


def _marked(family: Family, prefixes: Collection[str], kin: Mapping[str, Kin]) -> tuple[str, str | None]:
    """The prefix and the base below which a name marks a family; no base if there is none."""
    for prefix in prefixes:
        for base in family.bases:
            if any(prefix + base + mark in kin for mark in family.marks):
                return prefix, prefix + base
    return "", None


def _has_keys(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether a config tells how many modules there are."""
    return any(key in config for dim in family.counts for key in family.dims[dim])


def _of_place(place: Place, kin: Mapping[str, Kin], origins: Mapping[str, str]) -> Iterator[Difference]:
    modules = tuple(modules_of(place.family, place.base, kin))
    distinct: dict[Any, Seen] = {}
    for each in seen(place, kin, modules):
        distinct.setdefault((each.formulas, each.found), each)
    result = solve(place.family, place.config, list(distinct.values()))
    for change in result.solved:
        yield _solved(place, change)
    for each in result.unexplained if place.kind in place.family.models else ():
        yield Difference(f"no value of {_sizes(place, each)} gives {each.found}, but {each.about}")
    yield from lists(place, result.config, kin, origins)
    yield from gaps(modules)
    yield from heads(place, kin, origins)
    yield from flags(place, kin)
    yield from experts(place, kin, modules)
    yield from chosen(place, result.config)


def _solved(place: Place, change: Solved) -> Difference:
    value = change.patch[change.key]
    kept = ", ".join(f"{key} {kept}" for key, kept in change.patch.items() if key != change.key)
    shared = _sizes(place, change.seen) if change.seen.axis is not None else change.key
    reason = change.seen.about + (f" ({shared} = {change.seen.found})" if shared != change.key else "")
    found = f"but the tensors say {value}{f' with {kept}' if kept else ''}: {reason}"
    return Difference(f"{place.said(change.key)}, {found}", place.patch(change.patch))


def _sizes(place: Place, each: Seen) -> str:
    """The formulas that should give what was found, in the words of the config."""
    texts = (
        _DIM.sub(lambda dim: key_text(place.family, dim[0], place.config), f.text.replace("*", " * "))
        for f in each.formulas
    )
    return " or ".join(texts)
