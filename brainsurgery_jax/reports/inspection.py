"""A checkpoint: its tensors by name, with their sizes and statistics, and what they are in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.documents import Branches, Column, Entry, Record, Text, show_only
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.key_tree import PLAIN
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, few

_COLUMNS = (
    Column("shape", "shape", "shape"),
    Column("dtype", ""),
    Column("", "dtype"),
    Column("bytes", "size", "bytes"),
)


def report_inspection(chosen: Checkpoint, numbers: Mapping[str, Mapping[str, float]], *, compact: bool) -> Record:
    """The tensors of a checkpoint. `numbers`: statistics by name. `compact`: text folds equal items of a list."""
    left_out = dict(chosen.source.header.left_out)
    others = {name: leaf.word for name, leaf in chosen.tree.others.items()}
    tensors = _branches(chosen, numbers, others, compact=compact)
    return Record((
        Entry("path", chosen.path, Text(chosen.path)),
        *show_only(tensors if tensors.rows or others else None, Text(f"\n{_totals(chosen)}")),
        Entry("files", list(chosen.source.header.files)),
        Entry("metadata", dict(chosen.metadata)),
        Entry("notes", list(map(str, chosen.notes))),
        Entry("diagnostics", list(chosen.notes)),
        Entry("left_out", left_out, Text(f"left out, not tensors: {few(left_out, 8)}") if left_out else None),
        Entry("leaves", others),
        Entry("types", {name: kind.words for name, kind in chosen.tree.types.items()}),
        Entry("parameters", sum(a.size for a in chosen.avals.values())),
        Entry("bytes", sum(a.nbytes for a in chosen.avals.values())),
        Entry("tensors", tensors),
    ))  # fmt: skip


def _branches(
    chosen: Checkpoint, numbers: Mapping[str, Mapping[str, float]], others: Mapping[str, str], *, compact: bool
) -> Branches:
    figures = list(dict.fromkeys(key for found in numbers.values() for key in found))

    def row(name: str, aval: Aval) -> tuple[list[int] | str | int | float | None, ...]:
        kind, dtype = chosen.tree.types.get(name, PLAIN).word, aval.dtype.name
        told = f"{dtype} ({kind})" if kind else dtype
        return (list(aval.shape), dtype, told, aval.nbytes, *(numbers.get(name, {}).get(key) for key in figures))

    columns = (*_COLUMNS, *(Column(key, key, "figure") for key in figures))
    return Branches(columns, {name: row(name, aval) for name, aval in chosen.avals.items()}, others, compact)


def _totals(chosen: Checkpoint) -> str:
    avals = chosen.avals.values()
    dtypes = Counter(a.dtype.name for a in avals)
    kinds = ", ".join(f"{n:,} {d}" if len(dtypes) > 1 else d for d, n in dtypes.most_common())
    size = f"{sum(a.size for a in avals):,} parameters, {show_size(sum(a.nbytes for a in avals))}"
    files = counted(len(chosen.source.header.files), "file")
    return f"{counted(len(chosen), 'tensor')}, {size} ({kinds or 'empty'}), {files}"
