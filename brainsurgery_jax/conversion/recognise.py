"""Choose the layout and its direction: from the request, config.json, and the names in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from brainsurgery_jax.conversion.model import Request, SourceInfo
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, worded
from brainsurgery_jax.layout.adapters import adapt, as_named, is_adapter, of_peft, weights_of
from brainsurgery_jax.layout.bind import bind, settle_options
from brainsurgery_jax.layout.config import Dims
from brainsurgery_jax.layout.expressions import Config, Value
from brainsurgery_jax.layout.library import (
    SUFFIXES,
    describe_model,
    family_names,
    layout_for,
    layout_names,
    layouts,
    load_layout,
    unknown_layout,
)
from brainsurgery_jax.layout.model import NESTED, Layout
from brainsurgery_jax.layout.moments import OPTIMIZER

NONE = "none"
"""The value of `layout` that changes the format and no name."""


class Route(NamedTuple):
    """A layout, the direction, and its options."""

    layout: Layout
    inverse: bool
    options: Mapping[str, Value]


class Fit(NamedTuple):
    """How well names fit a route: the number of expected names that exist, and of names missing or in excess."""

    route: Route
    known: int
    wrong: int


def choose_route(found: SourceInfo, request: Request, target: str) -> Route | None:
    """The route to take; None for none. `target`: the format to write. Raises PlanError if the choice is not clear."""
    if request.layout == NONE:
        return None
    if request.layout is not None:
        return _best(_check_name(request.layout, found), found, request.options)
    return _inverse(found, request) or _forward(found, request, target)


def fit_names(route: Route, target: str) -> Route:
    """The route with names that are nested where the format is not the one whose names hold the layout's separator."""
    if route.layout.separator == "." or route.inverse or target == route.layout.format:
        return route
    return route._replace(options={NESTED: True, **route.options})


# --- By name ----------------------------------------------------------------------------------------------------------


def _check_name(wanted: str, found: SourceInfo) -> Layout:
    """The layout with a name or path, or a library's layout (`tunix`) for this model."""
    if wanted.endswith(SUFFIXES):
        return load_layout(wanted)
    if wanted in layout_names():
        return _for_model(load_layout(wanted), found)
    if wanted not in family_names():
        raise unknown_layout(wanted, NONE)
    if found.model is None:
        raise _no_model(found)
    return layout_for(wanted, found.config)


def _no_model(found: SourceInfo) -> PlanError:
    config, flax = _spell_option("config", "PATH"), _spell_option("layout", "flax")
    hint = f"Give the model's config.json with {config}; or keep all names and shapes with {flax}."
    lacks = "its config.json names no model_type" if found.config else "there is no config.json beside it"
    return _refuse("convert-config", f"{found.path}: {lacks}, so the model is unknown", hint)


def _spell_option(option: str, value: str = "") -> str:
    """An option of a conversion, as the caller writes it."""
    python = f"`{option}={value if value == 'PATH' else repr(value)}`" if value else f"`{option}=`"
    return worded(shell=f"`--{option} {value}`".replace(" `", "`"), python=python)


def _for_model(layout: Layout, found: SourceInfo) -> Layout:
    if not layout.models or found.config is None or found.model in layout.models:
        return layout
    others = ", ".join(other.name for other in _candidates(found)) or "flax, for every model"
    problem = f"'{layout.name}' is for {layout.model_list}, but config.json has {describe_model(found.model)}"
    raise _refuse("convert-model", problem, f"Layouts for this model: {others}.")


# --- By the checkpoint ------------------------------------------------------------------------------------------------


def _inverse(found: SourceInfo, request: Request) -> Route | None:
    """The inverse route, if the names are those of a target."""
    recorded = found.earlier.get("layout")
    candidates = (
        [recorded]
        if isinstance(recorded, str) and recorded in layout_names()
        else [layout.name for layout in _candidates(found)]
    )
    fits = [fit for name in candidates for fit in _fits(load_layout(name), found, request.options, inverse=True)]
    exact = [fit for fit in fits if fit.known and not fit.wrong]
    return max(exact, key=lambda fit: fit.known).route if exact else None


def _forward(found: SourceInfo, request: Request, target: str) -> Route | None:
    """The route to a target that needs a layout. Other formats keep the names."""
    candidates = _candidates(found)
    if target not in tree_formats() or not _may_be_hf(found, candidates):
        return None
    if len(candidates) == 1:
        return _best(candidates[0], found, request.options)
    if not candidates:
        if found.model is None:
            raise _no_model(found)
        flax, none = _spell_option("layout", "flax"), _spell_option("layout", "none")
        hint = f"{flax} keeps all names and shapes; {none} writes the names as they are."
        raise _refuse("convert-layout", f"there is no layout for {describe_model(found.model)}", hint)
    names = ", ".join(layout.name for layout in candidates)
    hint = f"Choose with {_spell_option('layout')}: {names}; flax keeps names and shapes, none only changes the format."
    raise _refuse("convert-layout", f"there are {len(candidates)} layouts for {describe_model(found.model)}", hint)


def tree_formats() -> frozenset[str]:
    """The formats that a model is written in for another library alone. An npz may as well be of any names."""
    return frozenset(layout.format for layout in layouts() if layout.separator == ".")


def _may_be_hf(found: SourceInfo, candidates: Sequence[Layout]) -> bool:
    """Whether a checkpoint may have Hugging Face names: it is not a training state or a tree of parameters."""
    return bool(candidates) or not any(n.partition(".")[0] in ("params", *OPTIMIZER) for n in found.names)


def _candidates(found: SourceInfo) -> list[Layout]:
    return [layout for layout in layouts() if found.model is not None and found.model in layout.models]


# --- Direction and options --------------------------------------------------------------------------------------------


def _best(layout: Layout, found: SourceInfo, options: Mapping[str, Value]) -> Route:
    """The direction and options that the names fit best."""
    if layout.dims and found.config is None:
        hint = f"Give it with {_spell_option('config', 'PATH')}; the hub has it beside the model."
        lacks = f"'{layout.name}' needs the model's config.json, and there is none beside {found.path}"
        raise _refuse("convert-config", lacks, hint)
    # The names of an adapter determine the direction, even if its factors cannot be expressed on the other side.
    directions = (not of_peft(found.names),) if is_adapter(found.names) else (False, True)
    fits = [fit for inverse in directions for fit in _fits(layout, found, options, inverse=inverse)]
    exact = [fit for fit in fits if fit.known and not fit.wrong]
    # Of equally good ones the first: towards the target, with the default options.
    return (
        max(exact or fits, key=lambda fit: fit.known - fit.wrong).route
        if fits
        else Route(layout, directions[0], dict(options))
    )


def _fits(layout: Layout, found: SourceInfo, options: Mapping[str, Value], *, inverse: bool) -> Iterator[Fit]:
    if layout.dims and found.config is None:
        return
    for switches in _switches(layout, found, options, inverse=inverse):
        if (fit := _fit(Route(layout, inverse, switches), found)) is not None:
            yield fit


def _switches(
    layout: Layout, found: SourceInfo, options: Mapping[str, Value], *, inverse: bool
) -> Iterator[dict[str, Value]]:
    """The options to try: those requested and recorded and, for the inverse, every setting of the others."""
    given = {**(_recorded(layout, found) if inverse else {}), **options}
    free = [n for n, v in layout.defaults.items() if isinstance(v, bool) and n not in given] if inverse else []
    choices = [(layout.options[n], not layout.options[n]) for n in free]
    for values in product(*choices):
        yield {**given, **dict(zip(free, values, strict=True))}


def _recorded(layout: Layout, found: SourceInfo) -> Mapping[str, Value]:
    """The options that a conversion to this layout recorded in its output."""
    recorded = found.earlier.get("options") if found.earlier.get("layout") == layout.name else None
    return recorded if isinstance(recorded, dict) else {}


def overridden(route: Route | None, found: SourceInfo, options: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
    """The requested options that differ from those that the checkpoint records: the recorded value and the new one."""
    recorded = _recorded(route.layout, found) if route is not None and route.inverse else {}
    return {n: (recorded[n], value) for n, value in options.items() if n in recorded and recorded[n] != value}


def _fit(route: Route, found: SourceInfo) -> Fit | None:
    """How well the names fit; None if the layout cannot be bound."""
    try:
        layout = as_named(route.layout, found.names, inverse=route.inverse)
        present = weights_of(found.names, layout)
        options = {**_assume_options(layout, found.config or {}, route.options), **route.options}
        bound = bind(layout, found.config or {}, options, present=present, inverse=route.inverse)
        if is_adapter(found.names) and not route.layout.rest:
            bound = adapt(bound, {name: aval.shape for name, aval in found.avals.items()}, inverse=route.inverse)
    except (PlanError, Refusal):
        return None
    expected = {n for pair in bound.pairs for n in (pair.target if route.inverse else pair.hf)}
    spare = bound.drops | frozenset(() if route.inverse else {t.copy for t in bound.ties})
    prefix = f"{route.layout.prefix}." if route.layout.prefix else ""
    there = {n for n in found.names if n.partition(".")[0] not in OPTIMIZER}
    if route.layout.rest:
        expected |= {n for n in there - spare if n.startswith(prefix) is (route.inverse and bool(prefix))}
    return Fit(route, len(expected & there), len(expected - there) + len(there - expected - spare))


def _assume_options(layout: Layout, config: Config, options: Mapping[str, Value]) -> dict[str, Value]:
    """Some value for each option that nothing determines: names do not depend on it, and no number is computed."""
    known = settle_options(layout, Dims(layout, config, options))
    return {name: layout.options[name] for name in layout.choices if name not in known and name not in options}


def _refuse(code: str, message: str, hint: str = "") -> PlanError:
    return PlanError([Diagnostic(code, message, hint=hint)])
