"""Stories of people who look: one tensor closely, two models, what a plan makes, ranks, and the health of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs
from tests.web.conftest import HOSTILE, Server, take_picture, turn_to, write_plan

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("playwright", reason="NO BROWSER TEST: Playwright is not installed (make venv installs it)")

SCALED = "inputs:\n  - model.safetensors\ntransforms:\n  - scale_:\n      target: h.1.mlp.weight\n      by: 3\n"


def open_page(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()


def open_tensor(page: Page, name: str) -> None:
    page.get_by_label("Search by pattern").first.fill(name.replace(".", r"\."))
    page.get_by_role("button", name=name).first.click()
    page.get_by_role("heading", name=name).wait_for()


def open_file(page: Page, path: str) -> None:
    page.get_by_label("Path of a checkpoint").fill(path)
    page.get_by_role("button", name="Open", exact=True).first.click()
    page.get_by_role("heading", name=path).wait_for()


def test_a_tensor_is_looked_at_from_its_histogram_to_single_values(page: Page, server: Server):
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(200, 300)).astype("f4")
    wide[150, 20] = 9.5
    save_file({"wide": wide}, server.root / "wide.safetensors")
    open_page(page, server)
    open_file(page, "wide.safetensors")
    page.get_by_role("button", name="Close").first.click()
    page.get_by_role("heading", name="model.safetensors").wait_for(state="detached")
    open_tensor(page, "wide")

    page.get_by_role("button", name="Histogram").click()
    page.get_by_role("img", name="Histogram").wait_for()
    quantiles = page.get_by_label("Quantiles")
    for share in (0.05, 0.5, 0.95):
        quantiles.get_by_role("cell", name=f"{np.quantile(wide.astype('f8'), share):.4g}", exact=True).wait_for()

    page.get_by_role("button", name="Heat map").click()
    page.get_by_role("img", name="Heat map: wide").wait_for()
    page.get_by_text("each cell is a mean").wait_for()
    page.get_by_text("largest magnitude 9.5").wait_for()
    take_picture(page, "heat-map")
    page.get_by_label("First row").fill("145")
    page.get_by_label("End row").fill("155")
    page.get_by_label("First column").fill("15")
    page.get_by_label("End column").fill("25")
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_text("rows 145 to 154 of 200, columns 15 to 24 of 300; each cell is a value").wait_for()
    part = wide[145:155, 15:25]
    page.get_by_text(f"cells from {part.min():.4g} to 9.5").wait_for()
    take_picture(page, "values")
    page.get_by_role("button", name="Zoom out").click()
    page.get_by_text("rows 130 to 169 of 200, columns 0 to 39 of 300").wait_for()
    page.get_by_role("img", name="Heat map: wide").click(position={"x": 300, "y": 150})
    page.get_by_text("rows 130 to 169 of 200, columns 0 to 39 of 300").wait_for(state="detached")
    page.get_by_text("each cell is a value").wait_for()
    page.get_by_role("button", name="Whole").click()
    page.get_by_text("rows 0 to 199 of 200, columns 0 to 299 of 300").wait_for()

    page.get_by_role("button", name="Spectrum").click()
    told = page.get_by_text("of the energy in")
    told.wait_for()
    values = np.linalg.svd(wide.astype("f8"), compute_uv=False)
    energy = np.cumsum(values**2) / np.sum(values**2)
    assert f"rank 64 of 200 captures {energy[63]:.2%}"[:-1] in told.inner_text()
    assert "64 values computed" in told.inner_text()
    page.get_by_role("slider", name="Rank").locator("[tabindex]").first.press("ArrowLeft")
    page.get_by_text("rank 63 of 200").wait_for()
    page.get_by_label("Singular values").click()
    page.get_by_role("option", name="all").click()
    page.get_by_role("button", name="Spectrum").click()
    page.get_by_text("effective rank").wait_for()


def test_before_and_after_a_step_are_compared_without_writing_an_output(page: Page, server: Server):
    open_page(page, server)
    turn_to(page, "Plan")
    write_plan(page, SCALED + "output: never.safetensors\n")
    page.get_by_text("No mistakes.").wait_for()
    page.get_by_role("button", name="Try", exact=True).click()
    page.get_by_text("No output was written.").wait_for()
    assert not (server.root / "never.safetensors").exists()

    turn_to(page, "Compare")
    page.get_by_text("Ranks of the differences").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("1 differ, 10 equal").wait_for()
    before = load_file(server.root / "model.safetensors")["h.1.mlp.weight"]
    found = bs.spectrum(server.root / "model.safetensors", target="h.1.mlp.weight")["h.1.mlp.weight"]
    row = page.get_by_role("row").filter(has_text="h.1.mlp.weight")
    for value in ("2", "1", f"{found.effective_rank:.6g}"):  # relative change, cosine, rank of twice the matrix
        row.get_by_role("cell", name=value, exact=True).first.wait_for()

    row.get_by_role("button", name="h.1.mlp.weight").click()
    for title in ("left: model.safetensors", "right: plan after step 1", "right - left"):
        page.get_by_role("img", name=f"Heat map: {title}").wait_for()
    page.get_by_text(f"256 elements differ, largest {2 * np.abs(before).max():.6g}").wait_for()
    page.get_by_text(f"cells from {2 * before.min():.4g} to {2 * before.max():.4g}").wait_for()
    page.get_by_role("img", name="Histogram").wait_for()
    take_picture(page, "figure-6-zoom-on-a-diff")


def test_the_table_of_differences_sorts_and_a_hostile_name_is_text_in_every_view(page: Page, server: Server):
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    changed = load_file(server.root / "model.safetensors")
    changed[HOSTILE] = changed[HOSTILE] * 3
    changed["h.0.mlp.bias"] = changed["h.0.mlp.bias"] + np.float32(0.01)
    save_file(changed, server.root / "changed.safetensors")
    open_page(page, server)
    open_file(page, "changed.safetensors")
    turn_to(page, "Compare")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("2 differ, 9 equal").wait_for()
    names = page.get_by_label("Differences").locator("tbody tr td:first-child")
    assert names.all_inner_texts() == [HOSTILE, "h.0.mlp.bias"]  # the most changed first
    page.get_by_role("columnheader", name="relative").click()
    page.wait_for_function("document.querySelector('[aria-label=Differences] tbody td').innerText == 'h.0.mlp.bias'")
    page.get_by_role("button", name=HOSTILE).click()
    page.get_by_role("img", name="Histogram").wait_for()
    page.get_by_role("img", name="Relative change by layer and module").hover(position={"x": 400, "y": 40})
    assert dialogs == [] and page.locator("img[src=x]").count() == 0


def test_ranks_are_chosen_for_many_matrices_and_written_as_steps(page: Page, server: Server):
    open_page(page, server)
    turn_to(page, "Low rank")
    page.get_by_label("Names that match").fill(r"h\.\d+\.(attn|mlp)\.weight")
    page.get_by_role("button", name="Compute").click()
    page.get_by_role("img", name="Captured energy against rank").wait_for()
    page.get_by_text("6 matrices").wait_for()
    page.get_by_label("Rank", exact=True).fill("2")
    page.get_by_role("button", name="Set rank").click()
    numbers = 3 * 2 * (8 + 8) + 3 * 2 * (8 + 32)
    page.get_by_text(f"6 chosen: {numbers:,} numbers instead of {3 * 64 + 3 * 256:,}").wait_for()
    take_picture(page, "low-rank")
    row = page.get_by_role("row").filter(has_text="h.1.attn.weight")
    row.get_by_role("checkbox").click()
    page.get_by_label("Rank", exact=True).fill("4")
    page.get_by_role("button", name="Set rank").click()
    page.get_by_text(f"1 chosen: {4 * 16} numbers instead of 64").wait_for()
    row.get_by_role("checkbox").click()
    page.get_by_text("6 chosen").wait_for()
    page.get_by_role("button", name="Write the step into the plan").click()
    page.get_by_text("2 steps written into the plan.").wait_for()
    turn_to(page, "Plan")
    page.get_by_text("No mistakes.").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download plan").click()
    plan = yaml.safe_load(Path(waiting.value.path()).read_text())
    first, second = (step["phlora"] for step in plan["transforms"])
    assert (first["rank"], second["rank"], plan["inputs"]) == (2, 4, ["model.safetensors"])
    chosen = [list(bs.open(str(server.root / "model.safetensors")).select(one["target"])) for one in (first, second)]
    assert chosen[1] == ["h.1.attn.weight"] and sorted(chosen[0]) == sorted(
        ["h.0.attn.weight", "h.2.attn.weight", *(f"h.{n}.mlp.weight" for n in range(3))]
    )


def test_broken_tensors_are_found_and_a_healthy_model_has_none(page: Page, server: Server):
    broken = load_file(server.root / "model.safetensors")
    broken["h.1.attn.weight"][3, 3] = np.nan
    broken["h.2.mlp.bias"][:] = 0
    broken["h.0.mlp.weight"] *= 1e6
    save_file(broken, server.root / "broken.safetensors")
    open_page(page, server)
    open_file(page, "broken.safetensors")
    page.get_by_role("button", name="Health").last.click()
    page.get_by_text("4 tensors of 11 look broken").wait_for()  # and the constant tensor of the hostile name
    page.get_by_text("h.0.mlp.weight: magnitude").wait_for()
    page.get_by_role("button", name="h.2.mlp.bias: zero everywhere").wait_for()
    page.get_by_text(re.compile(r"^h +\(9 tensors, .*⚠ 3 broken$")).wait_for()
    page.get_by_text("⚠ constant: 1").first.wait_for()
    take_picture(page, "figure-4-model-health")
    page.get_by_role("button", name="h.1.attn.weight: 1 NaN").click()
    page.get_by_role("heading", name="h.1.attn.weight").wait_for()
    page.get_by_role("button", name="Spectrum").click()
    page.get_by_text("The matrix holds NaN or infinity, so it has no spectrum.").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Report").last.click()
    assert "1 NaN" in Path(waiting.value.path()).read_text()
