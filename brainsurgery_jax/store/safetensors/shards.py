"""How an output is cut into safetensors files, from headers alone: greedily by size, but where files of a sharded
checkpoint may be passed on as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import FileCounts, Source, WriteOptions
from brainsurgery_jax.store.safetensors.unchanged import Original, original_of


class Shard(NamedTuple):
    """The tensors of an output file, and the file of a source that it is a copy of."""

    names: list[str]
    original: Original | None


def plan_shards(avals: Mapping[str, Aval], shard_bytes: int | None) -> list[list[str]]:
    """Names by shard, filled greedily in the order given; a tensor above the limit has a shard of its own."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, aval in avals.items():
        if shard_bytes is not None and shards[-1] and used + aval.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += aval.nbytes
    return shards


def shards_of(
    avals: Mapping[str, Aval],
    shard_bytes: int | None,
    unchanged: Mapping[str, Source],
    metadata: Mapping[str, str],
    *,
    keep_files: bool,
) -> list[Shard]:
    """The files of an output, in order. `unchanged` are the tensors that a source holds just so, under the same name,
    `metadata` is what the header of each file tells."""
    if keep_files and shard_bytes is not None:
        cut = _around_kept(avals, shard_bytes, unchanged, metadata)
    else:
        cut = plan_shards(avals, shard_bytes)
    return [Shard(names, original_of(names, unchanged, metadata)) for names in cut]


def _around_kept(
    avals: Mapping[str, Aval], limit: int, unchanged: Mapping[str, Source], metadata: Mapping[str, str]
) -> list[list[str]]:
    """Every file of a sharded source that goes out unchanged, in one piece, stays a file; what lies between is cut
    greedily. The limit holds for both."""

    def home(name: str) -> tuple[Source, int] | None:
        source = unchanged.get(name)
        return None if source is None else (source, source.header.tensors[name].file)

    def stays(names: list[str]) -> bool:
        small = len(names) == 1 or sum(avals[name].nbytes for name in names) <= limit
        found = original_of(names, unchanged, metadata) if small else None
        return found is not None and len(found.source.header.files) > 1

    shards: list[list[str]] = []
    between: dict[str, Aval] = {}
    for _, run in groupby(avals, home):
        names = list(run)
        if not stays(names):
            between |= {name: avals[name] for name in names}
            continue
        if between:
            shards += plan_shards(between, limit)
            between = {}
        shards.append(names)
    return shards + plan_shards(between, limit) if between else shards


def header_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of every file that is written: some readers want the format."""
    return {"format": "pt", **metadata}


def same_named(options: WriteOptions) -> dict[str, Source]:
    """The tensors that are written under the name by which a source holds them."""
    return {name: held.source for name, held in options.unchanged.items() if held.name == name}


def arrange_shards(avals: Mapping[str, Aval], options: WriteOptions) -> list[Shard]:
    """The files of an output that is written so."""
    metadata = header_metadata(options.metadata)
    return shards_of(avals, options.shard_bytes, same_named(options), metadata, keep_files=options.keep_files)


def cut_of(avals: Mapping[str, Aval], options: WriteOptions) -> FileCounts:
    """How many files an output will have, and how many are files of a source as they stand."""
    shards = arrange_shards(avals, options)
    kept = [shard for shard in shards if shard.original is not None]
    return FileCounts(len(shards), len(kept), sum(avals[name].nbytes for shard in kept for name in shard.names))
