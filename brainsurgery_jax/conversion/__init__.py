"""From a checkpoint to another format or another library's tree, and back: a plan that is recognised, not written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.conversion.model import Found, Wishes, look
from brainsurgery_jax.conversion.plans import goes_back, plan_of, verification_of
from brainsurgery_jax.conversion.recognise import Way, overridden, recognised
from brainsurgery_jax.conversion.verification import verify
from brainsurgery_jax.dtypes import BY_NAME, DTYPES, parse_dtype
from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.layout.adapters import is_adapter
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.layout.library import layouts
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.store import formats
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.peft import IN_METADATA
from brainsurgery_jax.world import Files

NOT_KNOWN = (
    "nothing tells which layout this tree has, so its names and shapes stay as they are. For those of Hugging Face say "
    "the layout and config.json: --layout maxtext --config PATH; --layout none if this is meant."
)


OVERFLOWS = ("saturate", "nan")


class Conversion(NamedTuple):
    """A conversion that is known from headers: the layout (None: names stay), its direction, and the plan."""

    found: Found
    destination: str
    way: Way | None
    wishes: Wishes
    plan: dict[str, Any]

    @property
    def remark(self) -> str:
        """What the caller should know: of a tree that nothing tells the layout of, or of options that are asked for and
        differ from those that the source was made with; empty if there is nothing."""
        if other := overridden(self.way, self.found, self.wishes.options):
            noted, asked = (
                ", ".join(f"{key}={str(values[at]).lower()}" for key, values in other.items()) for at in (0, 1)
            )
            return f"the source notes that it was made with {noted}; it is read with {asked}, as asked for"
        trees = {layout.format for layout in layouts()}
        if self.way is not None or self.wishes.layout is not None or self.plan["output"]["format"] in trees:
            return ""
        return NOT_KNOWN if _format_of(self.found.path) in trees else ""

    @property
    def verified(self) -> str:
        """What a verification has shown, and what it has not."""
        count = f"all {len(self.found.names):,} tensors" if len(self.found.names) > 1 else "the tensor"
        cast = f" cast to {self.wishes.dtype}" if self.wishes.dtype is not None else ""
        if self.way is None:
            return f"verified: what was written holds the bytes of {count} of the source{cast}"
        name, choices = self.way.layout.name, self.way.layout.choices
        if goes_back(self.found, self.way, self.wishes):
            shown = f"taken back by {name}, what was written holds the bytes of {count} of the source"
        else:
            shown = f"what was written holds the bytes that {name} makes of the source{cast}, computed again"
        options = {**self.way.layout.options, **self.plan_options}
        also = "".join(f", and that it expects {option}={str(options[option]).lower()}" for option in choices)
        return f"verified: {shown}. Not verified: what a model computes with them{also}"

    @property
    def plan_options(self) -> Mapping[str, Value]:
        """The options of the layout that the plan says."""
        steps = [step["layout"] for step in self.plan["transforms"] if "layout" in step]
        return steps[0].get("options", {}) if steps else {}

    def __str__(self) -> str:
        if self.way is None:
            return f"{self.plan['output']['format']}, names as they are"
        name, options = self.way.layout.name, {**self.way.layout.defaults, **self.way.options}
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
    target = hint or (way.layout.format if way is not None and not way.inverse else _plain_format(found))
    return Conversion(found, destination, way, wishes, plan_of(found, destination, way, wishes, target))


def _format_of(path: str) -> str | None:
    """The format of a checkpoint's folder."""
    place = parse_address(path).path
    found = formats.of_folder(place, sorted(os.listdir(place))) if os.path.isdir(place) else None
    return None if found is None else found.name


def _plain_format(found: Found) -> str:
    """The format of what has Hugging Face's names: that of PEFT for an adapter whose config came along."""
    return "peft" if is_adapter(found.names) and IN_METADATA in found.metadata else "safetensors"


def _check(source: str, destination: str, wishes: Wishes) -> None:
    """Refuse wishes that contradict each other."""
    dtype = parse_dtype(wishes.dtype) if wishes.dtype is not None else None
    if wishes.dtype is not None and dtype is None:
        names = [d.name for d in DTYPES if d.kind == "float"]
        near = did_you_mean(wishes.dtype, names) or did_you_mean(wishes.dtype, BY_NAME)
        found = f"unknown dtype '{wishes.dtype}'.{near}"
        raise PlanError([Diagnostic("dtype-unknown", found, hint=f"Floating dtypes: {', '.join(names)}.")])
    if dtype is not None and dtype.kind != "float":
        hint = "Cast integers in a plan, where you can scale first."
        found = f"'{wishes.dtype}' is no floating dtype: weights would be cut to whole numbers"
        raise PlanError([Diagnostic("convert-dtype", found, hint=hint)])
    if wishes.overflow is not None and (dtype is None or wishes.overflow not in OVERFLOWS):
        found = f"overflow '{wishes.overflow}' " + (
            "is none that there is" if dtype else "is about a dtype, and none is given"
        )
        hint = f"Give a dtype, and as its overflow {' or '.join(OVERFLOWS)}."
        raise PlanError([Diagnostic("convert-dtype", found, hint=hint)])
    if wishes.to is not None:
        try:
            formats.named(wishes.to)
        except ValueError as bad:
            raise PlanError([Diagnostic("output-format", str(bad))]) from bad
    if wishes.verify and os.path.realpath(parse_address(source).path) == os.path.realpath(destination):
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
    overflow: str | None = None,
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
    `dtype` is what floating tensors are cast to; `overflow` says what becomes of values beyond its largest: "saturate"
    (the largest) or "nan" (infinity, or NaN where there is none), left out what torch does.
    `scan` and `options` set options of the layout. `config` is the path of a config.json that is not beside the
    source. `verify` reads the result back before it is published, and compares every byte; the report's last `said`
    tells what that has shown, and what not. `with_opt_state` takes an optimizer's moments along.
    **Raises** PlanError or StoreError; then nothing was published.
    """
    chosen = {**(options or {}), **({} if scan is None else {"scan": scan})}
    wishes = Wishes(layout, to, dtype, chosen, config, overwrite, verify, with_opt_state, shard, overflow)
    made = prepare(source, destination, wishes)
    return execute(made, RunOptions(memory=memory, durable=durable, dry_run=dry_run, listen=listen))


def execute(made: Conversion, options: RunOptions, world: Files | None = None) -> api.Report:
    """Run a conversion. If it is to be verified, nothing is published before every byte was compared."""
    look = _verification(made, options.memory) if made.wishes.verify else None
    options = replace(options, overwrite=made.wishes.overwrite, look=look)
    files = world or Files(overwrite=options.overwrite or options.dry_run)
    files.also_reads(*filter(None, [made.wishes.config, made.way.layout.file if made.way else None]))
    try:
        report = api.run_with(api.load(made.plan), options, files)
    except PlanError as bad:
        raise bad.of_call("convert") from bad
    told = (made.verified,) if made.wishes.verify and not options.dry_run else ()
    remarks = (made.remark,) if made.remark else ()
    return report._replace(said=(*remarks, *report.said, *told))


def _verification(made: Conversion, memory: int | None) -> Callable[[StagedOutput], None]:
    """Reads back what was written, before it is published."""
    comparison = verification_of(made.found, made.destination, made.way, made.wishes)
    return partial(verify, comparison, made.destination, memory=memory)


__all__ = ("Conversion", "Wishes", "convert", "execute", "prepare")
