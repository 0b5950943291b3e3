"""Convert a checkpoint to another format or another library's tree, and back, by a plan derived from the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Unpack

from brainsurgery_jax import api
from brainsurgery_jax.conversion.model import Request, RequestKeywords, SourceInfo, look
from brainsurgery_jax.conversion.plans import PlanNode, goes_back, plan_of, verification_of
from brainsurgery_jax.conversion.quantized import (
    find_quantized,
    float_type,
    refuse_codes,
    refuse_floats,
    take_config_of_floats,
    take_floats,
)
from brainsurgery_jax.conversion.recognise import Route, choose_route, fit_names, overridden, tree_formats
from brainsurgery_jax.conversion.verification import verify
from brainsurgery_jax.dtypes import BY_NAME, DTYPES, DType, parse_dtype
from brainsurgery_jax.errors import Diagnostic, PlanError, converting, did_you_mean
from brainsurgery_jax.layout.adapters import is_adapter
from brainsurgery_jax.layout.expressions import Value
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.store import formats
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.peft import IN_METADATA
from brainsurgery_jax.world import Files

NOT_KNOWN = (
    "the layout of this tree is unknown, so names and shapes stay as they are. For Hugging Face names, give the layout "
    "and config.json: --layout maxtext --config PATH; --layout none if this is intended."
)


OVERFLOWS = ("saturate", "nan")


class Conversion(NamedTuple):
    """A conversion, derived from headers: the layout (None: names stay), its direction, and the plan."""

    found: SourceInfo
    destination: str
    route: Route | None
    request: Request
    plan: PlanNode

    @property
    def remark(self) -> str:
        """What the caller should know: a tree whose layout is unknown, or requested options that differ from those
        with which the source was converted; else empty."""
        if other := overridden(self.route, self.found, self.request.options):
            noted, asked = (
                ", ".join(f"{key}={str(values[at]).lower()}" for key, values in other.items()) for at in (0, 1)
            )
            return f"the source notes that it was made with {noted}; it is read with {asked}, as asked for"
        trees = tree_formats()
        if self.route is not None or self.request.layout is not None or self.plan["output"]["format"] in trees:
            return ""
        return NOT_KNOWN if _format_of(self.found.path) in trees else ""

    @property
    def verification(self) -> str:
        """What a verification has proved, and what it has not."""
        count = f"all {len(self.found.names):,} tensors" if len(self.found.names) > 1 else "the tensor"
        made = self.request
        cast = f", dequantized to {made.dequantize}" if made.dequantize is not None else ""
        cast += f" cast to {made.dtype}" if made.dtype is not None else ""
        if self.route is None:
            return f"verified: the output holds the bytes of {count} of the source{cast}"
        name, choices = self.route.layout.name, self.route.layout.choices
        if goes_back(self.found, self.route, self.request):
            shown = f"converted back by {name}, the output holds the bytes of {count} of the source"
        else:
            shown = f"the output holds the bytes that {name} computes from the source{cast}, computed again"
        options = {**self.route.layout.options, **self.plan_options}
        also = "".join(f", and that it expects {option}={str(options[option]).lower()}" for option in choices)
        return f"verified: {shown}. Not verified: what a model computes with them{also}"

    @property
    def plan_options(self) -> Mapping[str, Value]:
        """The options of the layout in the plan."""
        steps = [step["layout"] for step in self.plan["transforms"] if "layout" in step]
        return steps[0].get("options", {}) if steps else {}

    def __str__(self) -> str:
        if self.route is None:
            return f"{self.plan['output']['format']}, names as they are"
        name, options = self.route.layout.name, {**self.route.layout.defaults, **self.route.options}
        switches = ", ".join(f"{k}={v}" for k, v in options.items() if k != "base")
        back = f"Hugging Face names from {name}" if self.route.inverse else name
        return f"{back}{f' ({switches})' if switches else ''}, {self.plan['output']['format']}"


def prepare(source: str, destination: str, request: Request) -> Conversion:
    """Prepare a conversion from headers and config.json; no tensor is read. Raises PlanError or StoreError."""
    _check(source, destination, request)
    found, to = look(source, request.config), float_type(request)
    quantized = find_quantized(found)
    refuse_floats(found, quantized, request)
    if to is not None:
        found = take_floats(found, quantized, to)
    by_suffix = formats.of_suffix(suffix_of(destination))
    hint = request.to or (by_suffix.name if by_suffix is not None else None)
    route = choose_route(found, request, hint or "orbax")
    target = hint or (route.layout.format if route is not None and not route.inverse else _plain_format(found))
    route = None if route is None else fit_names(route, target)
    if to is None:
        refuse_codes(found, quantized, route, request)
    if route is not None and not route.layout.rest:
        found = take_config_of_floats(found)
    return Conversion(found, destination, route, request, plan_of(found, destination, route, request, target))


def _format_of(path: str) -> str | None:
    """The format of a checkpoint's folder."""
    place = parse_address(path).path
    found = formats.of_folder(place, sorted(os.listdir(place))) if os.path.isdir(place) else None
    return None if found is None else found.name


def _plain_format(found: SourceInfo) -> str:
    """The format for Hugging Face names: PEFT for an adapter that carries its config, else safetensors."""
    return "peft" if is_adapter(found.names) and IN_METADATA in found.metadata else "safetensors"


def _dtype(word: str) -> DType:
    """The dtype of a name. Raises PlanError."""
    if (dtype := parse_dtype(word)) is not None:
        return dtype
    names = [d.name for d in DTYPES if d.is_float]
    near = did_you_mean(word, names) or did_you_mean(word, BY_NAME)
    hint = f"Floating dtypes: {', '.join(names)}."
    raise PlanError([Diagnostic("dtype-unknown", f"unknown dtype '{word}'.{near}", hint=hint)])


def _check(source: str, destination: str, request: Request) -> None:
    """Refuse a request with unknown or contradictory values."""
    dtype, floats = (None if word is None else _dtype(word) for word in (request.dtype, request.dequantize))
    if dtype is not None and not dtype.is_float:
        hint = "Cast integers in a plan, where you can scale first."
        found = f"'{request.dtype}' is not a floating dtype: weights would be truncated to whole numbers"
        raise PlanError([Diagnostic("convert-dtype", found, hint=hint)])
    if floats is not None and not (floats.is_float and floats.bits >= 16):
        hint = "Make bfloat16, float16, float32 or float64 of them."
        found = f"'{request.dequantize}' does not hold the values of quantized weights"
        raise PlanError([Diagnostic("convert-dtype", found, hint=hint)])
    if request.overflow is not None and (dtype is None or request.overflow not in OVERFLOWS):
        found = f"overflow '{request.overflow}' " + ("is unknown" if dtype else "needs a dtype, and none is given")
        hint = f"Give a dtype, and an overflow: {' or '.join(OVERFLOWS)}."
        raise PlanError([Diagnostic("convert-dtype", found, hint=hint)])
    if request.to is not None:
        try:
            formats.find_format(request.to)
        except ValueError as bad:
            raise PlanError([Diagnostic("output-format", str(bad))]) from bad
    if request.verify and os.path.realpath(parse_address(source).path) == os.path.realpath(destination):
        hint = "Write to another path, or omit `verify`."
        found = f"{source} would be replaced, and the result could not be compared with it"
        raise PlanError([Diagnostic("convert-verify", found, hint=hint)])


def convert(
    source: str,
    destination: str,
    *,
    memory: int | str | None = None,
    durable: bool = True,
    dry_run: bool = False,
    lock: bool | str | os.PathLike[str] | None = None,
    listen: Callable[[Any], None] | None = None,
    **wishes: Unpack[RequestKeywords],
) -> api.Report:
    """Convert a checkpoint: its format, and by a layout its names and shapes.

    **Arguments**: `layout`: a layout's name, the first word of one (`tunix`: the layout for this model), a path, or
    `none`; by default, layout and direction are recognised. `to`: a format (`orbax`, `safetensors`, ...).
    `dtype`: the dtype for floating tensors. `overflow`: the result for values beyond its largest, "saturate" (the
    largest) or "nan" (infinity, or NaN where the dtype has none); by default, the result of torch.
    `dequantize`: the dtype of the floats that quantized weights become by the scales beside them, such as "bfloat16".
    `options` set options of the layout, and `scan` is short for that one. `config`: the path of a config.json that is
    not beside the source.
    `verify` reads the result back before it is published, and compares every byte; the last item of the report's `said`
    describes what this has proved. `with_opt_state` converts an optimizer's moments, too. `shard`: the largest size of
    an output file. `overwrite`, `memory`, `durable`, `dry_run`, `lock` and `listen` are those of `run`.
    **Returns** a `Report`.
    **Raises** PlanError or StoreError; then nothing is published.
    **Example**:

    >>> bs.convert("model.safetensors", "model.npz").published
    (('model.npz', 144, 3),)
    """
    conversion = prepare(source, destination, Request(**wishes))
    options = RunOptions(memory=memory, durable=durable, dry_run=dry_run, lock=lock, listen=listen)
    return execute(conversion, options)


def execute(conversion: Conversion, options: RunOptions, world: Files | None = None) -> api.Report:
    """Run a conversion. With `verify`, nothing is published before every byte has been compared."""
    look = _verification(conversion, options.memory) if conversion.request.verify else None
    options = replace(options, overwrite=conversion.request.overwrite, look=look)
    files = world or Files(overwrite=options.overwrite or options.dry_run)
    files.also_reads(
        *filter(None, [conversion.request.config, conversion.route.layout.file if conversion.route else None])
    )
    try:
        with converting():
            report = api.run_with(api.load(conversion.plan), options, files)
    except PlanError as bad:
        raise bad.of_call("convert") from bad
    results = (conversion.verification,) if conversion.request.verify and not options.dry_run else ()
    remarks = (conversion.remark,) if conversion.remark else ()
    return report._replace(said=(*remarks, *report.said, *results))


def _verification(conversion: Conversion, memory: int | str | None) -> Callable[[StagedOutput], None]:
    """Reads back what was written, before it is published."""
    comparison = verification_of(conversion.found, conversion.destination, conversion.route, conversion.request)
    return partial(verify, comparison, conversion.destination, memory=memory)


__all__ = ("Conversion", "Request", "convert", "execute", "prepare")
