"""Figures of matplotlib without its global state: grids of axes, labels that are text, and files of three kinds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from html import escape
from importlib import import_module
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.errors import StoreError, worded
from brainsurgery_jax.store.atomic import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

SUFFIXES = (".svg", ".png", ".html")

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "brainsurgery-jax", "font.size": 9.0, "axes.titlesize": 8.0,
    "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans",
}  # fmt: skip
_INSTALL = "Install it: `pip install 'brainsurgery-jax[plot]'`."
_LABEL = 40
"""Characters of a label; of longer names the end is shown."""

_PANEL = 3.1, 2.1
"""Inches of a small panel."""


def check_path(path: str, *, overwrite: bool = False) -> None:
    """Raises ValueError for a path whose suffix is not that of a picture, StoreError for one that is taken."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"a plot is written to a path that ends in {', '.join(SUFFIXES)}; got '{path}'")
    refuse_existing(path, overwrite=overwrite)


def refuse_existing(path: str, *, overwrite: bool) -> None:
    """Raises StoreError for a file that would be replaced unasked."""
    if os.path.lexists(path) and not overwrite:
        asked = worded(shell="`--overwrite`", python="`overwrite=True`")
        raise StoreError(path, "exists already", remedy=f"Write to another path, or replace it: {asked}.")


class Picture(NamedTuple):
    """Something to draw, in so many inches."""

    size: tuple[float, float]
    draw: Callable[[FigureBase], None]


def compose(pictures: Sequence[Picture]) -> Figure:
    """A figure of pictures below each other. Raises StoreError without matplotlib."""
    try:
        module = import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise StoreError("matplotlib", "is not installed, and plots are drawn by it", remedy=_INSTALL) from error
    heights = [picture.size[1] for picture in pictures]
    with _styled():
        figure = module.Figure(figsize=(max(p.size[0] for p in pictures), sum(heights)), layout="constrained")
        parts = figure.subfigures(len(pictures), 1, height_ratios=heights, squeeze=False).ravel()
        for picture, part in zip(pictures, parts, strict=True):
            picture.draw(part)
    return figure


@contextmanager
def _styled() -> Iterator[None]:
    rc_context = import_module("matplotlib").rc_context
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be of any script
        yield


def add_panels(figure: FigureBase, count: int, *, across: int = 3) -> list[Axes]:
    """So many small panels in a grid."""
    columns = min(across, count) or 1
    grid = figure.subplots(max(1, ceil(count / columns)), columns, squeeze=False)
    axes = list(grid.ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return axes[:count]


def add_legend(figure: FigureBase, axes: Axes) -> None:
    """Above all panels, what the labelled curves of one are. Labels are text, whatever they hold."""
    handles, labels = axes.get_legend_handles_labels()
    shown = list(map(clean_text, labels))
    legend = figure.legend(handles, shown, loc="outside upper left", ncols=len(shown), frameon=False, fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)


def size_of_panels(count: int, *, across: int = 3) -> tuple[float, float]:
    """Inches for so many small panels in a grid."""
    columns = min(across, count) or 1
    return max(6.0, _PANEL[0] * columns), _PANEL[1] * max(1, ceil(count / columns)) + 0.3


def set_title(axes: Axes, text: str, most: int = _LABEL) -> None:
    """A title that is text, whatever it holds; of a longer one its end."""
    axes.set_title(show_label(text, most), parse_math=False, loc="left")


def set_ticks(axes: Axes, across: Sequence[str], down: Sequence[str], most: int = 40) -> None:
    """Names for the cells of a picture; of very many across every other, and so on."""
    step = max(1, ceil(len(across) / most))
    axes.set_xticks(range(0, len(across), step))
    axes.set_xticklabels([show_label(text) for text in across[::step]], parse_math=False)
    axes.set_yticks(range(len(down)))
    axes.set_yticklabels([show_label(text) for text in down], parse_math=False)


def show_label(text: str, most: int = _LABEL) -> str:
    """A name as a label: the end of a long one, and nothing that XML or a terminal does not take."""
    plain = clean_text(text)
    return plain if len(plain) <= most else f"…{plain[1 - most :]}"


def clean_text(text: str) -> str:
    """A text with control characters and halves of surrogate pairs written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def draw_svg(figure: Figure) -> str:
    """The figure as an element of HTML or a file of SVG."""
    out = BytesIO()
    with _styled():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue().decode()
    return text[text.index("<svg") :]


def write_figure(figure: Figure, path: str, title: str) -> None:
    """Write a figure as the suffix of the path says; an existing file is replaced as a whole. Raises StoreError."""
    kind = Path(path).suffix.lower()
    if kind == ".png":
        out = BytesIO()
        with _styled():
            figure.savefig(out, format="png", dpi=144, metadata={"Software": None})
        data = out.getvalue()
    elif kind == ".svg":
        data = f'<?xml version="1.0" encoding="utf-8"?>\n{draw_svg(figure)}'.encode()
    else:
        data = wrap_page(title, f"<h1>{escape(clean_text(title))}</h1>\n<figure>{draw_svg(figure)}</figure>").encode()
    write_file(path, data)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 76rem; margin: 2rem auto;
  padding: 0 1.2rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5d9de; }}
h1, td, th {{ overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e6e9ec; vertical-align: top; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
td.name {{ font-family: ui-monospace, monospace; min-width: 14rem; }}
figure {{ margin: 1rem 0; }} svg {{ max-width: 100%; height: auto; }}
.bad {{ color: #a40e26; font-weight: 600; }}
</style></head><body>
{body}
</body></html>
"""


def wrap_page(title: str, body: str) -> str:
    """A page of HTML that loads nothing and runs nothing. `body` is HTML already."""
    return _PAGE.format(title=escape(clean_text(title)), body=body)
