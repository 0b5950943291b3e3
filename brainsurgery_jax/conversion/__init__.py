"""From a checkpoint to another format or another library's tree, and back: a plan that is recognised, not written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.conversion.model import Found, Wishes, look
from brainsurgery_jax.conversion.plans import plan_of, verification_of
from brainsurgery_jax.conversion.recognise import Way, recognised
from brainsurgery_jax.conversion.side_files import settle
from brainsurgery_jax.dtypes import parse_dtype
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.layout.adapters import is_adapter
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.store import formats
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.world import Files


class Conversion(NamedTuple):
    """A conversion that is known from headers: the layout (None: names stay), its direction, and the plan."""

    found: Found
    destination: str
    way: Way | None
    wishes: Wishes
    plan: dict[str, Any]

    def __str__(self) -> str:
        if self.way is None:
            return f"{self.plan['output']['format']}, names as they are"
        name, options = self.way.layout.name, {**self.way.layout.options, **self.way.options}
        told = ", ".join(f"{k}={v}" for k, v in options.items() if k != "base")
        back = f"Hugging Face names from {name}" if self.way.inverse else name
        return f"{back}{f' ({told})' if told else ''}, {self.plan['output']['format']}"


def prepare(source: str, destination: str, wishes: Wishes) -> Conversion:
    """What a conversion would do. Reads headers and config.json. Raises PlanError or StoreError."""
    _check(source, destination, wishes)
    found = look(source, wishes.config)
    by_suffix = formats.of_suffix(suffix_of(destination))
    hint = wishes.to or (by_suffix.name if by_suffix is not None else None)
    way = recognised(found, wishes, hint or "orbax")
    target = hint or (way.layout.format if way is not None and not way.inverse else "safetensors")
    return Conversion(found, destination, way, wishes, plan_of(found, destination, way, wishes, target))


def _check(source: str, destination: str, wishes: Wishes) -> None:
    """Refuse wishes that contradict each other."""
    dtype = parse_dtype(wishes.dtype) if wishes.dtype is not None else None
    if dtype is not None and dtype.kind != "float":
        hint = "Cast integers in a plan, where you can scale first."
        found = f"'{wishes.dtype}' is no floating dtype: weights would be cut to whole numbers"
        raise PlanError([Diagnostic("convert-dtype", found, hint=hint)])
    if wishes.verify and os.path.realpath(source) == os.path.realpath(destination):
        hint = "Write to another path, or leave `verify` out."
        found = f"{source} would be replaced, so that nothing is left to compare the result with"
        raise PlanError([Diagnostic("convert-verify", found, hint=hint)])


def convert(
    source: str,
    destination: str,
    *,
    layout: str | None = None,
    to: str | None = None,
    dtype: str | None = None,
    scan: bool | None = None,
    options: Mapping[str, Value] | None = None,
    config: str | None = None,
    overwrite: bool = False,
    verify: bool = False,
    with_opt_state: bool = False,
    shard: str | None = None,
    memory: int | None = None,
    durable: bool = True,
    dry_run: bool = False,
    listen: Callable[[Any], None] | None = None,
) -> api.Report:
    """Convert a checkpoint: its format, and by a layout its names and shapes.

    **Arguments**: `layout` is a layout's name, the first word of one (`tunix`: the one for this model), a path, or
    `none`; left out, it is recognised, and so is the direction. `to` is a format (`orbax`, `safetensors`, ...).
    `scan` and `options` set options of the layout. `config` is the path of a config.json that is not beside the
    source. `verify` reads the result back and compares every byte. `with_opt_state` takes an optimizer's moments along.
    **Raises** PlanError or StoreError; then nothing was published.
    """
    chosen = {**(options or {}), **({} if scan is None else {"scan": scan})}
    wishes = Wishes(layout, to, dtype, chosen, config, overwrite, verify, with_opt_state, shard)
    made = prepare(source, destination, wishes)
    return execute(made, listen=listen, memory=memory, durable=durable, dry_run=dry_run)


def execute(
    made: Conversion,
    *,
    listen: Callable[[Any], None] | None = None,
    memory: int | None = None,
    durable: bool = True,
    dry_run: bool = False,
    world: Files | None = None,
) -> api.Report:
    """Run a conversion, and verify it if that was asked for."""
    plan = api.load(made.plan)
    overwrite = made.wishes.overwrite
    report = api.run(
        plan, listen=listen, overwrite=overwrite, durable=durable, dry_run=dry_run, memory=memory, world=world
    )
    if dry_run:
        return report
    if not is_adapter(made.found.names):  # whose config.json is that of its base
        settle(made.destination, made.found.config, made.wishes.dtype)
    if made.wishes.verify:
        _verify(made, memory)
    return report


def _verify(made: Conversion, memory: int | None) -> None:
    check = verification_of(made.found, made.destination, made.way, made.wishes)
    try:
        api.run(api.load(check), memory=memory)
    except PlanError as bad:
        hint = f"{made.destination} was written, and is not what it should be: do not use it."
        raise PlanError([replace(d, hint=f"{d.hint}\n{hint}".lstrip()) for d in bad.diagnostics]) from bad


__all__ = ("Conversion", "Wishes", "convert", "execute", "prepare")
