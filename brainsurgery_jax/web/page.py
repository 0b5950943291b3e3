"""The page of a tab: three views under one header."""

from __future__ import annotations

from nicegui import ui

from brainsurgery_jax.web.compare_view import CompareView
from brainsurgery_jax.web.explorer_view import ExplorerView
from brainsurgery_jax.web.lowrank_view import LowRankView
from brainsurgery_jax.web.plan_view import PlanView
from brainsurgery_jax.web.scripts import SCRIPTS
from brainsurgery_jax.web.workbench import Workbench

STYLE = """
/* NiceGUI's own rule for rows is the stronger one without tailwind. */
.nicegui-row.items-center { align-items: center; } .nicegui-row.items-end { align-items: flex-end; }
.q-btn--dense:not(.q-btn--flat) { padding: .28rem .6rem; } .bs-tight { gap: .2rem .4rem; }
.bs-mono { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.bs-columns { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; width: 100%; }
.bs-column { flex: 1 1 24rem; min-width: 0; }
.bs-panel { flex: 1 1 20rem; min-width: 0; gap: .3rem; }
.bs-scroll { overflow: auto; max-height: 60vh; width: 100%; }
.bs-error { color: #b00020; } .body--dark .bs-error { color: #ff8a9b; }
.bs-scroll > * { flex: none; } .bs-mono .q-btn__content { text-align: left; }
.bs-muted { color: #555; } .body--dark .bs-muted { color: #bbb; }
.body--dark .q-btn--flat { --q-primary: #8fc1f5; }
.nicegui-link { color: #0d5c9e; } .body--dark .nicegui-link { color: #8fc1f5; }
.bs-line-error { background: rgba(200, 0, 40, .18); }
.body--dark .bs-editor, .body--dark .nicegui-echart { filter: invert(1) hue-rotate(180deg); }
.bs-editor { background: #fff; border: 1px solid #bbb; height: 45vh; width: 100%; }
#not-connected { position: fixed; inset: auto 0 0 0; z-index: 10000; padding: .7rem 1rem; }
#not-connected { background: #b00020; color: #fff; }
.bs-not-connected #app { opacity: .6; } #popup { display: none; }
:focus-visible { outline: 2px solid #1565c0; outline-offset: 1px; }
"""


def build_page(key: str, bench: Workbench) -> None:
    """Build the page of a workbench, as it stands."""
    ui.add_css(STYLE)
    ui.add_body_html(SCRIPTS)
    ui.colors(primary="#0d5c9e")
    dark = ui.dark_mode(None)
    with (
        ui.header().style("background: #0d3c61; color: white; padding: .4rem 1rem"),
        ui.row(align_items="center").classes("bs-tight"),
    ):
        ui.label("brainsurgery-jax").props("role=heading aria-level=1").style("font-size: 1.2rem; font-weight: 600")
        with ui.tabs().props("dense inline-label no-caps") as tabs:
            explore, plan, compare, low_rank = map(ui.tab, ("Explore", "Plan", "Compare", "Low rank"))
        ui.button("Dark / light", on_click=dark.toggle).props("flat dense no-caps color=white")
    with ui.tab_panels(tabs, value=explore, keep_alive=True).style("width: 100%"):
        with ui.tab_panel(plan):
            editor = PlanView(key, bench)
        with ui.tab_panel(explore):
            explorer = ExplorerView(bench, editor)
        with ui.tab_panel(compare):
            view = CompareView(key, bench)
        with ui.tab_panel(low_rank):
            ranks = LowRankView(bench, editor.edit)

    def refresh() -> None:
        explorer.refresh()
        refresh_choices()

    def refresh_choices() -> None:
        view.refresh()
        ranks.refresh()

    editor.when_done = refresh
    explorer.when_opened = refresh_choices
