"""The low-rank bench: energy against rank for many matrices, ranks, the size they make, and the step that does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from nicegui import ui

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.web.charts import MOST_LINES, draw_energy
from brainsurgery_jax.web.labels import name_image
from brainsurgery_jax.web.low_rank import RankBench, Way
from brainsurgery_jax.web.plan_text import add_steps
from brainsurgery_jax.web.tensor_view import HOW_MANY
from brainsurgery_jax.web.waiting import Waiting
from brainsurgery_jax.web.workbench import Workbench
from brainsurgery_jax.wording import counted, few

ITSELF = "the matrices themselves"
WAYS: dict[Way, str] = {
    "phlora": "phlora: factors in place of the matrices",
    "phlora_": "phlora_: matrices of that rank",
    "lora_extract": "lora_extract: an adapter of the changes",
}
_COLUMNS = ("tensor", "shape", "rank", "energy", "numbers", "share")


class LowRankView:
    """The view of the bench. `edit` changes the text of the plan by a function."""

    def __init__(self, workbench: Workbench, edit: Callable[[Callable[[str], str]], Awaitable[bool]]):
        self._workbench, self._edit, self._waiting = workbench, edit, Waiting()
        self._bench: RankBench | None = None
        with ui.row(align_items="end"):
            self._path = ui.select([], label="Checkpoint").style("min-width: 14rem")
            self._tuned = ui.select([ITSELF], label="Of", value=ITSELF).style("min-width: 14rem")
            self._pattern = ui.input("Names that match", value=".*weight").style("min-width: 12rem")
            self._most = ui.select(HOW_MANY, label="Singular values", value=64).style("min-width: 8rem")
            ui.button("Compute", on_click=self._compute).props("no-caps color=primary")
        self._told = ui.label("").props("role=status")
        self._result = ui.column().style("width: 100%")
        self.refresh()

    def refresh(self) -> None:
        """Offer the checkpoints that are open."""
        paths = list(self._workbench.opened)
        kept = self._path.value if self._path.value in paths else (paths[0] if paths else None)
        self._path.set_options(paths, value=kept)
        others = [ITSELF, *(f"changes in {path}" for path in paths)]
        self._tuned.set_options(others, value=self._tuned.value if self._tuned.value in others else ITSELF)
        if not paths:
            self._told.set_text("Open a checkpoint in Explore first.")

    async def _compute(self) -> None:
        path, tuned = self._path.value, self._other()
        if not path:
            return
        pattern, most = str(self._pattern.value or ""), int(self._most.value or 0) or None
        self._waiting.cancel()
        self._result.clear()
        self._told.set_text("")
        found = await self._waiting.run(
            self._result, "computing the singular values",
            lambda stop: self._workbench.opened.spectra(path, tuned, pattern, most, stop),
        )  # fmt: skip
        if found is None or self._result.is_deleted:
            return
        self._bench = RankBench(found)
        self._bench.choose_energy(0.9, self._bench.spectra)
        self._told.set_text(
            f"{counted(len(self._bench.spectra), 'matrix').replace('matrixs', 'matrices')}"
            + (f", without {few(self._bench.left_out)}, which hold NaN or infinity" if self._bench.left_out else "")
        )
        with self._result:
            self._draw(self._bench, path, tuned)

    def _other(self) -> str | None:
        told = str(self._tuned.value)
        return None if told == ITSELF else told.removeprefix("changes in ")

    def _draw(self, bench: RankBench, path: str, tuned: str | None) -> None:
        _show_energy(bench)
        with ui.row(align_items="end"):
            rank = ui.number("Rank", value=16, min=1, precision=0, format="%d").props("dense").style("width: 6rem")
            ui.button("Set rank", on_click=lambda: set_rank(int(rank.value or 1))).props("no-caps dense")
            share = ui.number("Energy, %", value=90, min=1, max=100).props("dense").style("width: 7rem")
            ui.button("Set energy", on_click=lambda: set_energy(float(share.value or 90) / 100)).props("no-caps dense")
            ui.label("of the rows that are selected, or of all").classes("bs-muted")
        total = ui.label("").props("role=status aria-label=Total").style("font-weight: 600")
        columns = [{"name": key, "label": key, "field": key, "sortable": True, "align": "left"} for key in _COLUMNS]
        table = ui.table(rows=[], columns=columns, row_key="tensor", selection="multiple", pagination=15,
                         on_select=lambda: show()).props('dense flat aria-label="Ranks"')  # fmt: skip
        table.classes("bs-mono").style("max-width: 100%")

        def chosen() -> list[str]:
            return [str(row["tensor"]) for row in table.selected] or list(bench.spectra)

        def show() -> None:
            table.rows = [_row(bench, name) for name in bench.spectra]
            table.update()
            sizes = bench.sizes(chosen())
            ratio = f"{sizes.after / sizes.before:.2%}" if sizes.before else "-"
            total.set_text(f"{len(chosen()):,} chosen: {sizes.after:,} numbers instead of {sizes.before:,} ({ratio})")

        def set_rank(number: int) -> None:
            bench.choose_rank(number, chosen())
            show()

        def set_energy(part: float) -> None:
            if unknown := bench.choose_energy(part, chosen()):
                ui.notify(f"More singular values must be computed to know the rank of {few(unknown)}.", type="warning")
            show()

        show()
        with ui.row(align_items="end"):
            ways = {way: text for way, text in WAYS.items() if (way == "lora_extract") == (tuned is not None)}
            way = ui.select(ways, label="Step", value=next(iter(ways))).style("min-width: 18rem")
            ui.button("Write the step into the plan", on_click=lambda: self._write(
                cast("Way", way.value), bench, chosen(), (path, tuned))).props("no-caps color=primary")  # fmt: skip

    async def _write(self, way: Way, bench: RankBench, names: list[str], sides: tuple[str, str | None]) -> None:
        path, tuned = sides
        known = self._workbench.opened[path].avals

        def write(text: str) -> str:
            text, head, inputs = self._workbench.with_input(text, path)
            other = ""
            if tuned is not None:
                text, other, _ = self._workbench.with_input(text, tuned)
            else:
                head = f"{head}::" if inputs > 1 else ""
            return add_steps(text, bench.write_steps(way, names, known, (head, other)))

        try:
            await self._edit(write)
        except (PlanError, StoreError) as bad:
            ui.notify(str(bad), type="negative", multi_line=True)
            return
        ui.notify(f"{counted(len({bench.ranks[name] for name in names}), 'step')} written into the plan.")


def _show_energy(bench: RankBench) -> None:
    """The energy of all matrices against rank, unless all are zero."""
    if any(one.values[0] for one in bench.spectra.values()):
        title = "Captured energy against rank"
        more = len(bench.spectra) - MOST_LINES
        told = f" (the first {MOST_LINES} of {len(bench.spectra):,})" if more > 0 else ""
        ui.label(title + told).props("role=heading aria-level=2").style("font-weight: 600")
        name_image(ui.echart(draw_energy(bench.spectra)), title).style("width: 100%; height: 22rem")


def _row(bench: RankBench, name: str) -> dict[str, object]:
    sizes, energy = bench.sizes([name]), bench.energy(name)
    return {
        "tensor": name, "shape": str(list(bench.spectra[name].shape)), "rank": bench.ranks[name],
        "energy": "-" if energy is None else float(f"{energy:.4g}"), "numbers": sizes.after,
        "share": float(f"{sizes.after / sizes.before:.3g}"),
    }  # fmt: skip
