"""Small checkpoints in place of large ones: the same names and dtypes, shapes shrunk together, real values.

A stand-in holds the leading part of each tensor. So what is tied, zero, a mask, an index or a covariance stays so, and
asserts about it hold as before. Layers and heads are kept: sizes are divided by one factor for all checkpoints, and the
sizes in config.json with them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from brainsurgery_jax.api import Plan, lower_plan
from brainsurgery_jax.auditing.cases import CONFIG, Case, StandIn, config_of, key_of, leaves
from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.looking.fingerprint import fingerprint
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.base import Header, Source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.in_memory import MemorySource
from brainsurgery_jax.store.sidecars import find_side_files, sidecar_folder
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.world import Files

LARGE = 64
"""Sizes below it are numbers of layers, heads or experts, and are kept."""
MOST_BYTES = 32 << 20
"""Of all stand-ins together: above it, sizes are divided."""
REFUSED_BYTES = 512 << 20
"""What is refused: dozens of runs on it would take too long."""
FACTORS = (2, 4, 8, 16, 32)
SIDE_BYTES = 1 << 20
"""Side files above it, such as vocabularies, are left out."""
_PER_HEAD = ("head_dim", "d_kv", "kv_channels", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim")


class _Recorder(Files):
    """The file system; keeps which checkpoints were opened, by path."""

    def __init__(self) -> None:
        super().__init__(overwrite=True)
        self.opened: dict[str, tuple[str, Source]] = {}

    def open(self, path: str, format: str | None = None) -> Source:
        source = super().open(path, format)
        self.opened[key_of(path)] = path, source
        return source

    def close(self) -> None:
        """They are read after the plan was checked; `finish` closes them."""

    def finish(self) -> None:
        super().close()


class Shrunk(NamedTuple):
    """The stand-ins of a plan by `key_of` the paths of its checkpoints, the factor of their sizes (1: they are whole),
    and the shapes that the plan itself writes: by path, and by name."""

    stand_ins: Mapping[str, StandIn]
    factor: int
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    @property
    def is_whole(self) -> bool:
        """Whether the stand-ins are what they stand for."""
        return self.factor == 1


def make_stand_ins(plan: Plan) -> Shrunk:
    """The stand-ins of all checkpoints that a plan reads. Raises PlanError for a plan with mistakes."""
    world = _Recorder()
    try:
        program = lower_plan(plan, world)
        if program.errors:
            raise PlanError(program.diagnostics)
        kept = _named_sizes(plan) | _counts([config_of(dict(_side_files(path))) for path, _ in world.opened.values()])
        headers = [source.header for _, source in world.opened.values()]
        sizes = {factor: _total(headers, factor, kept) for factor in (1, *FACTORS)}
        factor = next((f for f, nbytes in sizes.items() if nbytes <= MOST_BYTES), min(sizes, key=lambda f: sizes[f]))
        if sizes[factor] > REFUSED_BYTES:
            raise PlanError([_refuse(sizes[factor], plan)])
        made = {key: _stand_in(path, source, factor, kept) for key, (path, source) in world.opened.items()}
        shapes = {p.path: {n: e.aval.shape for n, e in p.tensors.items()} for p in program.publications}
        return Shrunk(made, factor, shapes)
    finally:
        world.finish()


def fingerprint_of(it: StandIn) -> str:
    """The fingerprint of a stand-in, as `assert.fingerprint` computes it."""
    source = MemorySource(it.path, it.tensors, it.avals, it.metadata, it.tree)
    return fingerprint(Checkpoint(source, it.avals))


def with_fingerprints(case: Case) -> Case:
    """The case with the fingerprints of its stand-ins wherever a step asks for that of an alias."""
    paths = dict(case.inputs)

    def fill(data: Any) -> Any:
        match data:
            case {"fingerprint": {"of": alias, "is": _}} if paths.get(alias) is not None:
                it = case.stand_ins[key_of(paths[alias])]
                return {**data, "fingerprint": {"of": alias, "is": fingerprint_of(it)}}
            case Mapping():
                return {key: fill(value) for key, value in data.items()}
            case list():
                return [fill(item) for item in data]
        return data

    return case._replace(steps=tuple(map(fill, case.steps)))


def _total(headers: Sequence[Header], factor: int, kept: Collection[int]) -> int:
    avals = (info.aval for header in headers for info in header.tensors.values())
    return sum(_shrink(aval, factor, kept).nbytes for aval in avals)


def _refuse(nbytes: int, plan: Plan) -> Diagnostic:
    sizes = ", ".join(map(str, sorted(_named_sizes(plan)))) or "none"
    message = f"the stand-ins would take {show_size(nbytes)}: layers are kept, and sizes that the plan names ({sizes})"
    hint = "Audit the plan on a smaller model of the same family, with the variables that fit it."
    return Diagnostic("budget-exceeded", message, hint=hint)


def _named_sizes(plan: Plan) -> frozenset[int]:
    """The sizes that steps say, in shapes, slices and expressions: what they are multiples or parts of is kept."""
    texts = (str(leaf) for step in plan.data.steps for _, leaf in leaves(step.summary))
    return frozenset(n for text in texts for n in map(int, re.findall(r"(?<![\w.])\d+(?![\w.])", text)) if n >= LARGE)


def _stand_in(path: str, source: Source, factor: int, kept: Collection[int]) -> StandIn:
    header = source.header
    avals = {name: _shrink(info.aval, factor, kept) for name, info in header.tensors.items() if
             info.aval.dtype.numpy is not None}  # fmt: skip
    tensors = {n: source.read(n, tuple((0, size, 1) for size in aval.shape)) for n, aval in avals.items()}
    sizes = {size: small for name, info in header.tensors.items() if name in avals for size, small in
             zip(info.aval.shape, avals[name].shape, strict=True) if size != small}  # fmt: skip
    side = dict(_side_files(path))
    if factor > 1 and (config := config_of(side)):
        side[CONFIG] = _shrink_config(config, sizes, factor)
    return StandIn(path, tensors, avals, header.metadata, header.tree, side)


def _shrink(aval: Aval, factor: int, kept: Collection[int]) -> Aval:
    return aval._replace(shape=tuple(shrink_size(size, factor, kept) for size in aval.shape))


def shrink_size(size: int, factor: int, kept: Collection[int] = ()) -> int:
    """A size divided by the factor, rounded up; a small one, and a multiple or part of one that is kept, stays."""
    if size < LARGE or factor == 1 or any(size % n == 0 or n % size == 0 for n in kept):
        return size
    return -(-size // factor)


def _counts(configs: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """The numbers of experts of configs that are as large as sizes are."""
    items = (item for config in configs for item in config.items())
    return frozenset(v for k, v in items if isinstance(v, int) and k.startswith(("num_", "n_")) and v >= LARGE and
                     "expert" in k)  # fmt: skip


def _shrink_config(config: Mapping[str, Any], sizes: Mapping[int, int], factor: int) -> bytes:
    def shrink(key: str, value: Any) -> Any:
        match value:
            case Mapping():
                return {k: shrink(k, v) for k, v in value.items()}
            case bool() | str() | float() | list() | None:
                return value
        if key.startswith("num_") or value not in sizes:
            return value // factor if key in _PER_HEAD and value % factor == 0 else value
        return sizes[value]

    return json.dumps(shrink("", config)).encode()


def _side_files(path: str) -> Iterator[tuple[str, bytes]]:
    folder = sidecar_folder(path)
    if folder is None or not folder.is_dir():
        return
    for name in find_side_files(folder).copied:
        if os.path.getsize(folder / name) <= SIDE_BYTES:
            with os_failures(folder / name, "read the file"):
                yield name, read_regular(folder / name)
