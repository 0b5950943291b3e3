"""A conversion as a plan: the tensors that it compares, leaves out, restores, casts and writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.conversion.model import CONFIG, LAYOUT, Request, SourceInfo
from brainsurgery_jax.conversion.quantized import float_steps
from brainsurgery_jax.conversion.recognise import Route
from brainsurgery_jax.dtypes import parse_dtype
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.adapters import as_named, is_adapter, weights_of
from brainsurgery_jax.layout.bind import BoundLayout, TiedPair, bind
from brainsurgery_jax.layout.moments import OPTIMIZER
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.store.formats import find_format

DTYPE_KEYS = ("dtype", "torch_dtype")
"""The keys of config.json for the dtype of the weights."""

PlanNode = dict[str, Any]
"""A part of a plan, as a mapping."""

SOURCE, WRITTEN = "source", "written"
"""The aliases of the input and, in a verification, of the output."""


def plan_of(found: SourceInfo, destination: str, route: Route | None, request: Request, target: str) -> PlanNode:
    """The plan, as a mapping that could be written to a file."""
    bound = _bind(route, found)
    output: PlanNode = {"path": destination, "format": target, "overwrite": request.overwrite}
    if request.shard is not None:
        output["shard"] = request.shard
    if patch := _config(found, request, destination, target):
        output["config"] = patch
    if route is not None:
        output["metadata"] = _notes(route, bound, found)
        if not route.inverse and target == route.layout.format:
            output["options"] = dict(route.layout.format_options)
    ties = _ties(found, route, bound)
    steps = [*float_steps(request, SOURCE), *ties, *_steps(found, route, bound, request)]
    return {"inputs": [f"{SOURCE}::{found.path}"], "transforms": steps, "output": output}


def _config(found: SourceInfo, request: Request, destination: str, target: str) -> Mapping[str, object]:
    """The patch for the config.json in the output: all of the source's, in case none is copied, with the new dtype.

    Empty for an adapter, whose config.json belongs to its base."""
    format = find_format(target)
    single = suffix_of(destination) in format.suffixes and not os.path.isdir(os.path.expanduser(destination))
    if found.config is None or single or not format.folder or is_adapter(found.names):
        return {}
    made = request.dtype or request.dequantize
    dtype = parse_dtype(made) if made is not None else None
    changed = {key: dtype.name for key in DTYPE_KEYS if dtype is not None and key in found.config}
    return {**found.config, **changed}


def goes_back(found: SourceInfo, route: Route | None, request: Request) -> bool:
    """Whether the output is verified by converting it back, which restores every bit; else the layout is applied to the
    source again."""
    bound = _bind(route, found)
    return bound is not None and request.dtype is None and request.dequantize is None and not bound.lossy()


def verification_of(found: SourceInfo, destination: str, route: Route | None, request: Request) -> PlanNode:
    """The plan that compares the output with its source, byte by byte."""
    inputs = [f"{SOURCE}::{found.path}", f"{WRITTEN}::{destination}"]
    bound = _bind(route, found)
    if route is None or not goes_back(found, route, request):
        compared = {"left": f"{SOURCE}::(.+)", "right": rf"{WRITTEN}::\1"}
        again = [*float_steps(request, SOURCE), *_steps(found, route, bound, request)]
        return {"inputs": inputs, "transforms": [*again, {"assert": {"identical": compared}}]}
    back = _layout(route._replace(inverse=not route.inverse), bound, found, request, WRITTEN)
    compared = {"left": f"{WRITTEN}::(.+)", "right": rf"{SOURCE}::\1"}
    return {"inputs": inputs, "transforms": [{"layout": back}, {"assert": {"identical": compared}}]}


def _ties(found: SourceInfo, route: Route | None, bound: BoundLayout | None) -> list[PlanNode]:
    """Asserts that the tensors left out as copies are copies."""
    pairs = [] if route is None or route.inverse else _tied_pairs(bound, found)
    return [{"assert": {"identical": {"left": f"{SOURCE}::{_escape(t.copy)}", "right": _of_source(t)}}} for t in pairs]


def _of_source(pair: TiedPair) -> str:
    """The original as a template without captures."""
    return f"{SOURCE}::" + pair.original.replace("\\", r"\\")


def _steps(found: SourceInfo, route: Route | None, bound: BoundLayout | None, request: Request) -> list[PlanNode]:
    steps: list[PlanNode] = []
    if route is not None and not request.with_opt_state and any(map(_of_optimizer, found.names)):
        steps.append({"delete": {"target": rf"{SOURCE}::({'|'.join(OPTIMIZER)})(\..*)?"}})
    if request.dtype is not None:
        cast = {"target": f"{SOURCE}::{_floats(found)}", "to": request.dtype}
        steps.append({"cast_": cast if request.overflow is None else cast | {"overflow": request.overflow}})
    if route is not None:
        step = _layout(route, bound, found, request, SOURCE)
        restored = _copies_to_restore(bound, found) if route.inverse else []
        steps.append({"layout": step | ({"restore": restored} if restored else {})})
    return steps


def _tied_pairs(bound: BoundLayout | None, found: SourceInfo) -> list[TiedPair]:
    return [t for t in bound.ties if t.copy in found.names] if bound else []


def _copies_to_restore(bound: BoundLayout | None, found: SourceInfo) -> list[str]:
    """The tied copies in the source of the earlier conversion."""
    return [t.copy for t in bound.ties if t.copy in found.earlier_ties] if bound else []


def _bind(route: Route | None, found: SourceInfo) -> BoundLayout | None:
    """The layout for this checkpoint; None on a mistake, which the plan's own step will report."""
    if route is None:
        return None
    try:
        layout = as_named(route.layout, found.names, inverse=route.inverse)
        present = weights_of(found.names, layout)
        return bind(layout, found.config or {}, route.options, present=present, inverse=route.inverse)
    except PlanError:
        return None


def _of_optimizer(name: str) -> bool:
    return name.partition(".")[0] in OPTIMIZER


def _escape(name: str) -> str:
    """A pattern that matches only this name."""
    return name.replace(".", r"\.")


def _floats(found: SourceInfo) -> str:
    """A pattern for the floating tensors: buffers of integers keep their dtype."""
    others = [name for name, aval in found.avals.items() if not aval.dtype.is_float]
    return f"(?!(?:{'|'.join(map(_escape, others))})$).*" if others else ".*"


def _layout(route: Route, bound: BoundLayout | None, found: SourceInfo, request: Request, alias: str) -> PlanNode:
    step: PlanNode = {"name": route.layout.file or route.layout.name, "alias": alias}
    if route.layout.dims:
        step["config"] = dict(found.config or {})
    if options := dict(bound.options if bound else route.options):
        step["options"] = options
    return step | ({"inverse": True} if route.inverse else {}) | ({"moments": True} if request.with_opt_state else {})


def _notes(route: Route, bound: BoundLayout | None, found: SourceInfo) -> Mapping[str, str]:
    """The metadata that converting back needs; converting back removes it."""
    if route.inverse:
        return {key: "" for key in (LAYOUT, CONFIG) if key in found.metadata}
    tied = [t.copy for t in _tied_pairs(bound, found)]
    made = {"layout": route.layout.name, "options": dict(bound.options if bound else route.options), "tied": tied}
    notes = {LAYOUT: json.dumps(made, sort_keys=True)}
    return notes if found.config is None else notes | {CONFIG: json.dumps(found.config, sort_keys=True)}
