"""`bs.report`: a checkpoint, or how two differ, as one page of HTML that loads nothing and runs nothing.

Whatever is in names, paths and configs is escaped: it is shown as text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from html import escape
from pathlib import Path

from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.comparison import Difference, diff
from brainsurgery_jax.comparison.side_files import shorten
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.looking.chosen import choose
from brainsurgery_jax.looking.health import find_problems
from brainsurgery_jax.looking.spectra import Spectrum, spectra_of
from brainsurgery_jax.looking.stats import stats_of
from brainsurgery_jax.nametree import module_of
from brainsurgery_jax.numerics.moments import TensorStats
from brainsurgery_jax.numerics.rollups import Grouping, roll_up, sort_differences
from brainsurgery_jax.plots.canvas import Picture, clean_text, compose, draw_svg, refuse_existing, wrap_page
from brainsurgery_jax.plots.looking import picture_checkpoint, picture_difference
from brainsurgery_jax.plots.pictures import draw_energy
from brainsurgery_jax.store.atomic import write_file
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted

MOST_ROWS = 100
"""Rows of a table."""

MOST_VALUES = 64
"""Singular values that are computed of each matrix."""

Cell = str | int | float | None


def report(
    path: str | os.PathLike[str] | Checkpoint,
    other: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    to: str | os.PathLike[str],
    target: str | list[str] | None = None,
    spectra: bool = False,
    overwrite: bool = False,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> None:
    """Write a report of a checkpoint, or of how another differs from it, as one self-contained page of HTML.

    **Arguments**: `path` and `other` are those of files or folders, or what `bs.open` returns; `to` is the page.
    `target` selects names. `spectra` also factorizes the matrices, or their differences, which takes longer.
    `overwrite` replaces an existing page. `memory` is the budget, a number of bytes or a text such as "5GB" (default: a
    quarter of the available memory). `stop`: a `threading.Event`, or anything with `is_set`, that ends it early; then
    nothing is written.
    **Returns** None.
    **Raises** StoreError for what cannot be read or written, for a page that exists, and without matplotlib; ValueError
    for another suffix than .html, a bad `target` or one that matches nothing; PlanError for a budget that is too small;
    Stopped.
    **Example**:

    >>> bs.report("model.safetensors", to="report.html")
    """
    page = os.fspath(to)
    if Path(page).suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"a report is a page of HTML, so its path ends in .html; got '{page}'")
    refuse_existing(page, overwrite=overwrite)
    with ExitStack() as opened:
        first = choose(open_side(path, opened, "report"), target if other is None else None)
        if other is None:
            title, body = first.path, _describe_one(first, memory, stop, spectra=spectra)
        else:
            second = open_side(other, opened, "report")
            found = diff(first, second, target=target, memory=memory, stop=stop)
            title = f"{first.path} and {second.path}"
            body = _describe_two(found, (first, second), memory, stop, spectra=spectra)
        text = wrap_page(title, "\n".join((f"<h1>{_text(title)}</h1>", *body)))
    write_file(page, text.encode())


def _describe_one(chosen: Checkpoint, memory: int | str | None, stop: StopSignal, *, spectra: bool) -> Iterator[str]:
    stats = stats_of(chosen, memory, stop=stop)
    yield _paragraph(_total(chosen))
    yield from _section("Health", _table(("tensor", "problem"), find_problems(stats).items()) or _paragraph(_HEALTHY))
    if stats:
        yield from _section("Values", _draw(picture_checkpoint(chosen, stats, stop)))
        heads = ("module", "tensors", "parameters", "min", "max", "mean", "std")
        yield from _section("Modules", _table(heads, _module_rows(stats)))
    if spectra:
        yield from _section("Spectra", _show_spectra(spectra_of([chosen], memory, most=MOST_VALUES, stop=stop)))


def _describe_two(
    found: Difference,
    sides: tuple[Checkpoint, Checkpoint],
    memory: int | str | None,
    stop: StopSignal,
    *,
    spectra: bool,
) -> Iterator[str]:
    left, right = sides
    yield _table(
        ("", "tensors and size"), (("left: " + found.left, _total(left)), ("right: " + found.right, _total(right)))
    )
    counts = (("equal", found.equal), ("differ", len(found.differing)), ("only left", len(found.only_left)),
              ("only right", len(found.only_right)), ("other leaves of the tree", len(found.leaves)))  # fmt: skip
    yield _paragraph(", ".join(f"{number:,} {what}" for what, number in counts if number) or "No tensors.")
    if any(one.figures is not None for one in found.differing):
        yield from _section("Change", _draw(picture_difference(found, left, right, stop)))
        yield from _section("By layer", _table(("layer", *_SUMS), _sums(found, "layer")))
        yield from _section("By module", _table(("module", *_SUMS), _sums(found, "module")))
    yield from _section("Tensors, the most changed first", _table(_FIGURES, _tensor_rows(found)))
    alone = [(name, str(aval), side) for side, avals in (("left", found.only_left), ("right", found.only_right))
             for name, aval in avals.items()]  # fmt: skip
    yield from _section("Tensors of one side", _table(("tensor", "shape and dtype", "side"), alone))
    files = ((name, shorten(a), shorten(b)) for name, (a, b) in found.side_files.items())
    yield from _section("Side files", _table(("file or key", "left", "right"), files))
    if spectra:
        names = {one.name for one in found.differing if one.figures is not None}
        spectra_found = spectra_of([right, left], memory, names, most=MOST_VALUES, stop=stop)
        yield from _section("Spectra of the differences", _show_spectra(spectra_found))


_HEALTHY = "No tensor has NaN or infinity, is zero everywhere or constant, or far larger than others of its module."
_SUMS = "tensors", "elements that differ", "largest", "relative", "cosine"
_FIGURES = "tensor", "left", "right", "elements that differ", "largest", "relative", "cosine"


def _total(chosen: Checkpoint) -> str:
    avals = chosen.avals
    dtypes = ", ".join(dtype for dtype, _ in Counter(a.dtype.name for a in avals.values()).most_common())
    size = show_size(sum(a.nbytes for a in avals.values()))
    return f"{counted(len(avals), 'tensor')}, {sum(a.size for a in avals.values()):,} parameters, {size} ({dtypes})"


def _module_rows(stats: Mapping[str, TensorStats]) -> Iterator[tuple[Cell, ...]]:
    groups: dict[str, list[TensorStats]] = {}
    for name, one in stats.items():
        groups.setdefault(module_of(name), []).append(one)
    for module, ones in groups.items():
        size = sum(one.size for one in ones)
        mean = sum(one.mean * one.size for one in ones) / size
        spread = sum((one.std**2 + (one.mean - mean) ** 2) * one.size for one in ones) / size
        ends = min(one.min for one in ones), max(one.max for one in ones)
        yield module, len(ones), size, *ends, mean, spread**0.5


def _sums(found: Difference, by: Grouping) -> Iterator[tuple[Cell, ...]]:
    for row in roll_up(found.differing, by):
        figures = row.figures
        yield (row.key or f"no {by}", row.tensors, figures.differing, figures.largest, figures.relative, figures.cosine)


def _tensor_rows(found: Difference) -> Iterator[tuple[Cell, ...]]:
    for one in sort_differences(found.differing, "change"):
        head = one.name, str(one.left), str(one.right)
        if (figures := one.figures) is None:
            yield (*head, None, None, None, None)
        else:
            yield (*head, figures.differing, figures.largest, figures.relative, figures.cosine)


def _show_spectra(found: Mapping[str, Spectrum]) -> str:
    rows = [(name, str(list(one.shape)), *(_rank(one, share) for share in (0.9, 0.99)), float(one.values[0]))
            for name, one in found.items()]  # fmt: skip
    table = _table(("matrix", "shape", "rank of 90 %", "rank of 99 %", "largest"), rows)
    drawable = any(one.is_finite and one.values[0] for one in found.values())
    return (_draw([draw_energy(found)]) if drawable else "") + table


def _rank(one: Spectrum, share: float) -> Cell:
    rank = one.rank_of(share)
    return rank if rank is not None else f"> {len(one.values)}" if one.is_finite else "-"


def _draw(pictures: Sequence[Picture]) -> str:
    return f"<figure>{draw_svg(compose(pictures))}</figure>"


def _section(title: str, content: str) -> Iterator[str]:
    """A heading and what is below it; nothing for nothing."""
    if content:
        yield f"<h2>{_text(title)}</h2>\n{content}"


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table, or nothing without rows."""
    listed = list(rows)
    if not listed:
        return ""
    numbers = {at for at in range(len(heads)) if any(isinstance(row[at], int | float) for row in listed)}
    kinds = ["number" if at in numbers else "name" if at == 0 else "" for at in range(len(heads))]
    head = "".join(
        f'<th scope="col" class="{kind}">{_text(text)}</th>' for kind, text in zip(kinds, heads, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, kinds, row))}</tr>" for row in listed[:MOST_ROWS])
    more = _paragraph(f"and {len(listed) - MOST_ROWS:,} more") if len(listed) > MOST_ROWS else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{more}'


def _cell(kind: str, value: Cell) -> str:
    match value:
        case None:
            text = ""
        case int():
            text = f"{value:,}"
        case float():
            text = f"{value:.4g}"
        case str():
            text = value
    return f'<td class="{kind}">{_text(text)}</td>'


def _text(text: str) -> str:
    """A text as HTML."""
    return escape(clean_text(text))


def default_page(path: str) -> str:
    """Where the report of a checkpoint goes if nothing is said: its name with another suffix, in the working folder."""
    return f"{Path(path.partition('::')[0].rstrip('/')).stem or 'report'}.report.html"
