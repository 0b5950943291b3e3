"""A checkpoint: its tensors by name, with their sizes and statistics, and what they are in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.documents import Branches, Column, Entry, Record, Text, Value, show_only
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.key_tree import PLAIN, LeafType
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, few

if TYPE_CHECKING:
    from brainsurgery_jax.looking.histograms import Histogram

_COLUMNS = (
    Column("shape", "shape", "shape"),
    Column("dtype", ""),
    Column("", "dtype"),
    Column("bytes", "size", "bytes"),
)


BARS = " ▁▂▃▄▅▆▇█"
"""What a histogram is drawn with in a line of text: a blank for bins without elements."""

TEXT_BINS = 16


def report_inspection(
    chosen: Checkpoint,
    numbers: Mapping[str, Mapping[str, float]],
    histograms: Mapping[str, Histogram] | None = None,
    *,
    compact: bool,
) -> Record:
    """The tensors of a checkpoint. `numbers` and `histograms`: statistics by name. `compact`: text folds equal items of
    a list."""
    left_out = dict(chosen.source.header.left_out)
    avals, tree = chosen.avals, chosen.tree  # each is made anew for whoever asks
    others = {name: leaf.word for name, leaf in tree.others.items()}
    parameters, nbytes = sum(a.size for a in avals.values()), sum(a.nbytes for a in avals.values())
    tensors = Branches(*_table(avals, tree.types, numbers, histograms or {}), others, compact)
    totals = Text(f"\n{_totals(chosen, avals, parameters, nbytes)}")
    return Record((
        Entry("path", chosen.path, Text(chosen.path)),
        *show_only(tensors if tensors.rows or others else None, totals),
        Entry("files", list(chosen.source.header.files)),
        Entry("metadata", dict(chosen.metadata)),
        Entry("notes", list(map(str, chosen.notes))),
        Entry("diagnostics", list(chosen.notes)),
        Entry("left_out", left_out, Text(f"left out, not tensors: {few(left_out, 8)}") if left_out else None),
        Entry("leaves", others),
        Entry("types", {name: kind.words for name, kind in tree.types.items()}),
        Entry("parameters", parameters),
        Entry("bytes", nbytes),
        Entry("tensors", tensors),
    ))  # fmt: skip


def _table(
    avals: Mapping[str, Aval],
    types: Mapping[str, LeafType],
    numbers: Mapping[str, Mapping[str, float]],
    histograms: Mapping[str, Histogram],
) -> tuple[tuple[Column, ...], Mapping[str, tuple[Value, ...]]]:
    """The columns, and a row for each tensor."""
    figures = list(dict.fromkeys(key for found in numbers.values() for key in found))

    def row(name: str, aval: Aval) -> tuple[Value, ...]:
        kind, dtype = types.get(name, PLAIN).word, aval.dtype.name
        told = f"{dtype} ({kind})" if kind else dtype
        return (
            list(aval.shape),
            dtype,
            told,
            aval.nbytes,
            *(numbers.get(name, {}).get(key) for key in figures),
            *drawn(name),
        )

    def drawn(name: str) -> tuple[Value, ...]:
        found = histograms.get(name)
        return () if not histograms else (None, None, None) if found is None else _describe_histogram(found)

    columns = (*_COLUMNS, *(Column(key, key.replace("_", " "), "figure") for key in figures),
               *(_HISTOGRAM if histograms else ()))  # fmt: skip
    if types or numbers or histograms:
        return columns, {name: row(name, aval) for name, aval in avals.items()}
    alike = {aval: row("", aval) for aval in set(avals.values())}  # of 90,000 tensors few have a shape of their own
    return columns, {name: alike[aval] for name, aval in avals.items()}


_HISTOGRAM = (Column("quantiles", ""), Column("histogram", ""), Column("", "histogram"))


def _describe_histogram(found: Histogram) -> tuple[Value, ...]:
    """Its quantiles, its bins, and a drawing of them from the least to the greatest element."""
    quantiles = {f"{share:g}": value for share, value in found.quantiles.items()}
    bins: dict[str, Value] = {"edges": found.edges.tolist(), "counts": found.counts.tolist()}
    return quantiles, bins, f"|{draw_bars(found)}|"


def draw_bars(found: Histogram) -> str:
    """A histogram in a line of text, of at most TEXT_BINS characters."""
    groups = min(TEXT_BINS, len(found.counts))
    starts = [at * len(found.counts) // groups for at in range(groups + 1)]
    sums = [int(found.counts[a:b].sum()) for a, b in pairwise(starts)]
    most = max(sums) or 1
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in sums)


def _totals(chosen: Checkpoint, avals: Mapping[str, Aval], parameters: int, nbytes: int) -> str:
    dtypes = Counter(a.dtype.name for a in avals.values())
    kinds = ", ".join(f"{n:,} {d}" if len(dtypes) > 1 else d for d, n in dtypes.most_common())
    size = f"{parameters:,} parameters, {show_size(nbytes)}"
    files = counted(len(chosen.source.header.files), "file")
    return f"{counted(len(chosen), 'tensor')}, {size} ({kinds or 'empty'}), {files}"
