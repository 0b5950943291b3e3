"""A conversion as a plan: what is looked at, left out, carried over, cast, and written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.conversion.model import CONFIG, LAYOUT, Found, Wishes
from brainsurgery_jax.conversion.recognise import Way
from brainsurgery_jax.dtypes import parse_dtype
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.adapters import is_adapter, weights_of
from brainsurgery_jax.layout.bind import Bound, TiedPair, bind
from brainsurgery_jax.layout.moments import OPTIMIZER
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.store.formats import named

DTYPE_KEYS = ("dtype", "torch_dtype")
"""What config.json calls the dtype of the weights."""

SOURCE, WRITTEN = "source", "written"
"""Aliases of what is read, and of what was written when it is verified."""


def plan_of(found: Found, destination: str, way: Way | None, wishes: Wishes, target: str) -> dict[str, Any]:
    """The plan, as a mapping that could as well be written to a file."""
    bound = _bound(way, found)
    output: dict[str, Any] = {"path": destination, "format": target, "overwrite": wishes.overwrite}
    if wishes.shard is not None:
        output["shard"] = wishes.shard
    if patch := _config(found, wishes, destination, target):
        output["config"] = patch
    if way is not None:
        output["metadata"] = _notes(way, bound, found)
        if not way.inverse and target == way.layout.format:
            output["options"] = dict(way.layout.format_options)
    steps = [*_ties(found, way, bound), *_steps(found, way, bound, wishes)]
    return {"inputs": [f"{SOURCE}::{found.path}"], "transforms": steps, "output": output}


def _config(found: Found, wishes: Wishes, destination: str, target: str) -> Mapping[str, Any]:
    """What the config.json in the output says beyond the one that comes along with the source: all of it where none
    does, and the dtype that was cast to. That of an adapter is its base's, and stays there."""
    format = named(target)
    single = suffix_of(destination) in format.suffixes and not os.path.isdir(os.path.expanduser(destination))
    if found.config is None or single or not format.folder or is_adapter(found.names):
        return {}
    dtype = parse_dtype(wishes.dtype) if wishes.dtype is not None else None
    changed = {key: dtype.name for key in DTYPE_KEYS if dtype is not None and key in found.config}
    return {**found.config, **changed}


def goes_back(found: Found, way: Way | None, wishes: Wishes) -> bool:
    """Whether what was written is compared with its source by the way back, which gives every bit; else the layout is
    applied to the source once more."""
    bound = _bound(way, found)
    return bound is not None and wishes.dtype is None and not bound.lossy()


def verification_of(found: Found, destination: str, way: Way | None, wishes: Wishes) -> dict[str, Any]:
    """The plan that compares what was written with its source, byte by byte."""
    inputs = [f"{SOURCE}::{found.path}", f"{WRITTEN}::{destination}"]
    bound = _bound(way, found)
    if way is None or not goes_back(found, way, wishes):
        compared = {"left": f"{SOURCE}::(.+)", "right": rf"{WRITTEN}::\1"}
        steps = [*_steps(found, way, bound, wishes), {"assert": {"identical": compared}}]
        return {"inputs": inputs, "transforms": steps}
    back = _layout(way._replace(inverse=not way.inverse), bound, found, wishes, WRITTEN)
    compared = {"left": f"{WRITTEN}::(.+)", "right": rf"{SOURCE}::\1"}
    return {"inputs": inputs, "transforms": [{"layout": back}, {"assert": {"identical": compared}}]}


def _ties(found: Found, way: Way | None, bound: Bound | None) -> list[dict[str, Any]]:
    """Asserts that what is left out as a copy is one."""
    pairs = [] if way is None or way.inverse else _tied(bound, found)
    return [{"assert": {"identical": {"left": f"{SOURCE}::{_exactly(t.copy)}", "right": _of_source(t)}}} for t in pairs]


def _of_source(pair: TiedPair) -> str:
    """The original as a template: a name in which nothing is filled."""
    return f"{SOURCE}::" + pair.original.replace("\\", r"\\")


def _steps(found: Found, way: Way | None, bound: Bound | None, wishes: Wishes) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if way is not None and not wishes.with_opt_state and any(map(_of_optimizer, found.names)):
        steps.append({"delete": {"target": rf"{SOURCE}::({'|'.join(OPTIMIZER)})(\..*)?"}})
    if wishes.dtype is not None:
        cast = {"target": f"{SOURCE}::{_floats(found)}", "to": wishes.dtype}
        steps.append({"cast_": cast if wishes.overflow is None else cast | {"overflow": wishes.overflow}})
    if way is not None:
        step = _layout(way, bound, found, wishes, SOURCE)
        restored = _restored(bound, found) if way.inverse else []
        steps.append({"layout": step | ({"restore": restored} if restored else {})})
    return steps


def _tied(bound: Bound | None, found: Found) -> list[TiedPair]:
    return [t for t in bound.ties if t.copy in found.names] if bound else []


def _restored(bound: Bound | None, found: Found) -> list[str]:
    """The tied copies that the checkpoint had before it was converted."""
    return [t.copy for t in bound.ties if t.copy in found.made_by.get("tied", ())] if bound else []


def _bound(way: Way | None, found: Found) -> Bound | None:
    """The layout for this checkpoint; None where the plan's own step will say what is wrong."""
    if way is None:
        return None
    try:
        present = weights_of(found.names, way.layout)
        return bind(way.layout, found.config or {}, way.options, present=present, inverse=way.inverse)
    except PlanError:
        return None


def _of_optimizer(name: str) -> bool:
    return name.partition(".")[0] in OPTIMIZER


def _exactly(name: str) -> str:
    """A pattern that matches one name alone."""
    return name.replace(".", r"\.")


def _floats(found: Found) -> str:
    """A pattern of the floating tensors: buffers of integers keep their dtype."""
    others = [name for name, aval in found.avals.items() if aval.dtype.kind != "float"]
    return f"(?!(?:{'|'.join(map(_exactly, others))})$).*" if others else ".*"


def _layout(way: Way, bound: Bound | None, found: Found, wishes: Wishes, alias: str) -> dict[str, Any]:
    step: dict[str, Any] = {"name": way.layout.file or way.layout.name, "alias": alias}
    if way.layout.dims:
        step["config"] = dict(found.config or {})
    if options := dict(bound.options if bound else way.options):
        step["options"] = options
    return step | ({"inverse": True} if way.inverse else {}) | ({"moments": True} if wishes.with_opt_state else {})


def _notes(way: Way, bound: Bound | None, found: Found) -> Mapping[str, str]:
    """What the way back will need. On the way back it is taken out again."""
    if way.inverse:
        return {key: "" for key in (LAYOUT, CONFIG) if key in found.metadata}
    tied = [t.copy for t in _tied(bound, found)]
    made = {"layout": way.layout.name, "options": dict(bound.options if bound else way.options), "tied": tied}
    notes = {LAYOUT: json.dumps(made, sort_keys=True)}
    return notes if found.config is None else notes | {CONFIG: json.dumps(found.config, sort_keys=True)}
