"""Which layout leads where: from what was asked for, config.json, and the names that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from brainsurgery_jax.conversion.model import Found, Wishes
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, worded
from brainsurgery_jax.layout.adapters import adapted, is_adapter, of_peft, weights_of
from brainsurgery_jax.layout.bind import bind, settled
from brainsurgery_jax.layout.config import Dims
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.library import (
    SUFFIXES,
    family_names,
    layout_for,
    layout_names,
    layouts,
    load_layout,
    told_model,
    unknown_layout,
)
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.moments import OPTIMIZER

NONE = "none"
"""The word for: change the format alone, and no name."""


class Way(NamedTuple):
    """A layout, the direction, and its options."""

    layout: Layout
    inverse: bool
    options: Mapping[str, Value]


class Fit(NamedTuple):
    """How well names fit a way: how many of the expected are there, how many are missing or in excess."""

    way: Way
    known: int
    wrong: int


def recognised(found: Found, wishes: Wishes, target: str) -> Way | None:
    """The way to go, None for none. `target` is the format to be written. Raises PlanError where it is not clear."""
    if wishes.layout == NONE:
        return None
    if wishes.layout is not None:
        return _best(_named(wishes.layout, found), found, wishes.options)
    return _inverse(found, wishes) or _forward(found, wishes, target)


# --- By name ----------------------------------------------------------------------------------------------------------


def _named(wanted: str, found: Found) -> Layout:
    """The layout of a name, a path, or the one of a library (`tunix`) for this model."""
    if wanted.endswith(SUFFIXES):
        return load_layout(wanted)
    if wanted in layout_names():
        return _for_model(load_layout(wanted), found)
    if wanted not in family_names():
        raise unknown_layout(wanted, NONE)
    if found.model is None:
        raise _no_model(found)
    return layout_for(wanted, found.config)


def _no_model(found: Found) -> PlanError:
    config, flax = _said("config", "PATH"), _said("layout", "flax")
    hint = f"Name the model's config.json with {config}; or keep all names and shapes by {flax}."
    lacks = "its config.json names no model_type" if found.config else "there is no config.json beside it"
    return _refused("convert-config", f"{found.path}: {lacks}, which would tell the model", hint)


def _said(option: str, value: str = "") -> str:
    """An option of a conversion, as it is given."""
    python = f"`{option}={value if value == 'PATH' else repr(value)}`" if value else f"`{option}=`"
    return worded(shell=f"`--{option} {value}`".replace(" `", "`"), python=python)


def _for_model(layout: Layout, found: Found) -> Layout:
    if not layout.models or found.config is None or found.model in layout.models:
        return layout
    others = ", ".join(other.name for other in _candidates(found)) or "flax, which is for all"
    problem = f"'{layout.name}' is for {layout.models_told}, and config.json says {told_model(found.model)}"
    raise _refused("convert-model", problem, f"For this model there is: {others}.")


# --- By what is there -------------------------------------------------------------------------------------------------


def _inverse(found: Found, wishes: Wishes) -> Way | None:
    """The way back, where the names are those of a target."""
    noted = found.made_by.get("layout")
    candidates = [noted] if noted in layout_names() else [layout.name for layout in _candidates(found)]
    fits = [fit for name in candidates for fit in _fits(load_layout(name), found, wishes.options, inverse=True)]
    exact = [fit for fit in fits if fit.known and not fit.wrong]
    return max(exact, key=lambda fit: fit.known).way if exact else None


def _forward(found: Found, wishes: Wishes, target: str) -> Way | None:
    """The way to a target that needs a layout; other formats keep the names."""
    candidates = _candidates(found)
    if target not in {layout.format for layout in layouts()} or not _looks_like_hf(found, candidates):
        return None
    if len(candidates) == 1:
        return _best(candidates[0], found, wishes.options)
    if not candidates:
        if found.model is None:
            raise _no_model(found)
        flax, none = _said("layout", "flax"), _said("layout", "none")
        hint = f"{flax} keeps all names and shapes; {none} writes the names as they are."
        raise _refused("convert-layout", f"no layout is known for {told_model(found.model)}", hint)
    names = ", ".join(layout.name for layout in candidates)
    hint = f"Say which by {_said('layout')}: {names}; flax keeps names and shapes, none changes the format alone."
    raise _refused("convert-layout", f"{len(candidates)} layouts are for {told_model(found.model)}", hint)


def _looks_like_hf(found: Found, candidates: Sequence[Layout]) -> bool:
    """Whether a checkpoint may have Hugging Face's names: any does that is no training state or tree of parameters."""
    return bool(candidates) or not any(n.partition(".")[0] in ("params", *OPTIMIZER) for n in found.names)


def _candidates(found: Found) -> list[Layout]:
    return [layout for layout in layouts() if found.model is not None and found.model in layout.models]


# --- Direction and options --------------------------------------------------------------------------------------------


def _best(layout: Layout, found: Found, options: Mapping[str, Value]) -> Way:
    """The direction and switches that the names fit best."""
    if layout.dims and found.config is None:
        hint = f"Name it with {_said('config', 'PATH')}; it comes with the model on the hub."
        lacks = f"'{layout.name}' needs the model's config.json, and there is none beside {found.path}"
        raise _refused("convert-config", lacks, hint)
    # The names of an adapter tell the direction, also where its factors have no form on the other side.
    directions = (not of_peft(found.names),) if is_adapter(found.names) else (False, True)
    fits = [fit for inverse in directions for fit in _fits(layout, found, options, inverse=inverse)]
    exact = [fit for fit in fits if fit.known and not fit.wrong]
    # Of equally good ones the first: the way to the target, switches as the layout has them.
    return (
        max(exact or fits, key=lambda fit: fit.known - fit.wrong).way
        if fits
        else Way(layout, directions[0], dict(options))
    )


def _fits(layout: Layout, found: Found, options: Mapping[str, Value], *, inverse: bool) -> Iterator[Fit]:
    if layout.dims and found.config is None:
        return
    for switches in _switches(layout, found, options, inverse=inverse):
        if (fit := _fit(Way(layout, inverse, switches), found)) is not None:
            yield fit


def _switches(
    layout: Layout, found: Found, options: Mapping[str, Value], *, inverse: bool
) -> Iterator[dict[str, Value]]:
    """The options to try: what is asked for, what was noted, and on the way back every setting of the others."""
    given = {**(_noted(layout, found) if inverse else {}), **options}
    free = [n for n, v in layout.defaults.items() if isinstance(v, bool) and n not in given] if inverse else []
    choices = [(layout.options[n], not layout.options[n]) for n in free]
    for values in product(*choices):
        yield {**given, **dict(zip(free, values, strict=True))}


def _noted(layout: Layout, found: Found) -> Mapping[str, Any]:
    """The options that a conversion to this layout noted in what it made."""
    noted = found.made_by.get("options") if found.made_by.get("layout") == layout.name else None
    return noted if isinstance(noted, dict) else {}


def overridden(way: Way | None, found: Found, options: Mapping[str, Value]) -> dict[str, tuple[Any, Value]]:
    """The options that are asked for in place of those that the checkpoint notes: the noted value and the new one."""
    noted = _noted(way.layout, found) if way is not None and way.inverse else {}
    return {n: (noted[n], value) for n, value in options.items() if n in noted and noted[n] != value}


def _fit(way: Way, found: Found) -> Fit | None:
    """How well the names fit; None where the layout cannot be bound at all."""
    try:
        present = weights_of(found.names, way.layout)
        options = {**_any(way.layout, found.config or {}, way.options), **way.options}
        bound = bind(way.layout, found.config or {}, options, present=present, inverse=way.inverse)
        if is_adapter(found.names) and not way.layout.rest:
            bound = adapted(bound, {name: aval.shape for name, aval in found.avals.items()}, inverse=way.inverse)
    except (PlanError, Refusal):
        return None
    expected = {n for pair in bound.pairs for n in (pair.target if way.inverse else pair.hf)}
    spare = set() if way.inverse else bound.drops | {t.copy for t in bound.ties}
    prefix = f"{way.layout.prefix}." if way.layout.prefix else ""
    there = {n for n in found.names if n.partition(".")[0] not in OPTIMIZER}
    if way.layout.rest:
        expected |= {n for n in there - spare if n.startswith(prefix) is (way.inverse and bool(prefix))}
    return Fit(way, len(expected & there), len(expected - there) + len(there - expected - spare))


def _any(layout: Layout, config: Mapping[str, Any], options: Mapping[str, Value]) -> dict[str, Value]:
    """Some value for each option that nothing settles: names do not depend on it, and numbers are not looked at."""
    known = settled(layout, Dims(layout, config, options))
    return {name: layout.options[name] for name in layout.choices if name not in known and name not in options}


def _refused(code: str, message: str, hint: str = "") -> PlanError:
    return PlanError([Diagnostic(code, message, hint=hint)])
