"""`inspect`: a checkpoint from its headers. Loads neither JAX nor the ops; the engine for statistics only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import typer

from brainsurgery_jax import nametree
from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.cli import show
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, did_you_mean
from brainsurgery_jax.rendering.data import diagnostic_data
from brainsurgery_jax.rendering.text import align_columns
from brainsurgery_jax.store.key_tree import PLAIN
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, few


def inspect(path: str, target: str | None, format: str, *, stats: bool) -> int:
    """Print a checkpoint's tensors; yields the exit code, 1 if `target` matches none. Raises StoreError."""
    whole = Checkpoint.open(path)
    if format != "json":
        show.diagnostics(whole.notes)
    try:
        chosen = whole if target is None else whole.select(target)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--target") from bad
    if target is not None and not chosen:
        message = f"no tensor of {path} matches '{target}' (of {len(whole):,}).{did_you_mean(target, whole)}"
        if format == "json":
            show.failure([diagnostic_data(Diagnostic("no-match", message))], 1)
        else:
            show.remark(message, "red")
        return 1
    numbers = _stats(chosen) if stats else {}
    if format == "json":
        show.json(**data_of(chosen, numbers))
        return 0
    lines = [path, *_tree(chosen, numbers, compact=format == "compact"), "", _totals(chosen)]
    if whole.left_out:
        lines.append(f"left out, not tensors: {few(whole.left_out, 8)}")
    show.result("\n".join(lines))
    return 0


def _tree(chosen: Checkpoint, numbers: Mapping[str, dict[str, float]], *, compact: bool) -> list[str]:
    """Branches with columns; the tree is drawn with tabs between cells, which are then aligned."""
    tree = chosen.tree
    cells = {n: _cells(a, numbers.get(n), tree.types.get(n, PLAIN).word) for n, a in chosen.avals.items()}
    cells |= {name: f"\t{leaf.word}" for name, leaf in tree.others.items()}
    leaves = [(name.replace("\t", "\\t"), cells[name]) for name in sorted(cells)]
    rows = [line.split("\t") for line in nametree.draw(nametree.build(leaves), compact=compact)]
    most = max(map(len, rows), default=1)
    padded = [[row[0].rstrip(), *row[1:], *[""] * (most - len(row))] for row in rows]
    return align_columns(padded, right=frozenset({3}))


def _cells(aval: Aval, numbers: dict[str, float] | None, kind: str) -> str:
    dtype = f"{aval.dtype.name} ({kind})" if kind else aval.dtype.name
    cells = [str(list(aval.shape)), dtype, show_size(aval.nbytes)]
    # Counts are mostly 0, and then say nothing.
    cells += [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in (numbers or {}).items() if _tells(v)]
    return "\t" + "\t".join(cells)


def _tells(number: float) -> bool:
    return number != 0 or isinstance(number, float)


def _totals(chosen: Checkpoint) -> str:
    avals = chosen.avals.values()
    dtypes = Counter(a.dtype.name for a in avals)
    kinds = ", ".join(f"{n:,} {d}" if len(dtypes) > 1 else d for d, n in dtypes.most_common())
    size = f"{sum(a.size for a in avals):,} parameters, {show_size(sum(a.nbytes for a in avals))}"
    files = counted(len(chosen.source.header.files), "file")
    return f"{counted(len(chosen), 'tensor')}, {size} ({kinds or 'empty'}), {files}"


def data_of(chosen: Checkpoint, numbers: Mapping[str, dict[str, float]]) -> dict[str, object]:
    """The tensors of a checkpoint, for programs. `numbers`: statistics by name."""
    tensors = {
        name: {"shape": list(a.shape), "dtype": a.dtype.name, "bytes": a.nbytes}
        | {k: v if v - v == 0 else str(v) for k, v in numbers.get(name, {}).items()}  # JSON knows no NaN or infinity
        for name, a in chosen.avals.items()
    }
    return {
        "path": chosen.path,
        "files": list(chosen.source.header.files),
        "metadata": dict(chosen.metadata),
        "notes": list(map(str, chosen.notes)),
        "diagnostics": list(map(diagnostic_data, chosen.notes)),
        "left_out": dict(chosen.source.header.left_out),
        "leaves": {name: leaf.word for name, leaf in chosen.tree.others.items()},
        "types": {name: kind.words for name, kind in chosen.tree.types.items()},
        "parameters": sum(a.size for a in chosen.avals.values()),
        "bytes": sum(a.nbytes for a in chosen.avals.values()),
        "tensors": tensors,
    }


def _stats(chosen: Checkpoint) -> dict[str, dict[str, float]]:
    """The statistics of each tensor by their names; nothing for complex, opaque and empty ones."""
    from dataclasses import asdict

    from brainsurgery_jax.looking.stats import stats_of

    shown = ("min", "max", "mean", "std", "norm", "zeros", "nans", "infs")
    return {name: {key: asdict(found)[key] for key in shown} for name, found in stats_of(chosen).items()}
