"""A user's story in a browser: look, write a step, mend it, preview, run, compare, undo, download, replay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.web.conftest import HOSTILE, Server, take_picture, turn_to, wait_until_still, write_model, write_plan

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("playwright", reason="NO BROWSER TEST: Playwright is not installed (make venv installs it)")


def test_from_a_look_to_a_plan_that_the_command_line_replays(page: Page, server: Server, tmp_path: Path):
    dialogs: list[str] = []
    foreign: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda r: foreign.append(r.url) if f"127.0.0.1:{server.port}" not in r.url else None)

    # open: the URL loses its token, and the checkpoint of the command is there; a hostile name is text
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()
    assert "token" not in page.url
    page.get_by_text(HOSTILE).wait_for()
    page.get_by_text("h (9 tensors").locator("xpath=../..").locator(".q-tree__arrow").click()
    page.get_by_text("[0-2] (3 alike, 9 tensors").wait_for()
    page.get_by_text("[0-2] (3 alike, 9 tensors").locator("xpath=../..").locator(".q-tree__arrow").click()
    page.get_by_text("mlp (2 tensors").wait_for()
    take_picture(page, "explore")

    # find the attention weights by the grammar of references
    page.get_by_label("Search by pattern").fill(r"h\.\d+\.attn\.weight")
    page.get_by_text("3 of 11 match").wait_for()
    page.get_by_role("button", name="h.1.attn.weight").click()
    page.get_by_text("effective rank").wait_for(state="detached")
    page.get_by_role("button", name="Spectrum").click()
    told = page.get_by_text("of the energy in")
    told.wait_for()
    values = np.linalg.svd(load_file(server.root / "model.safetensors")["h.1.attn.weight"], compute_uv=False)
    energy = np.cumsum(np.square(values.astype("f8"))) / np.sum(np.square(values.astype("f8")))
    rank = int(np.argmax(energy >= 0.9)) + 1
    assert f"rank {rank} of 8 captures {energy[rank - 1]:.4%}" in told.inner_text()
    take_picture(page, "tensor")

    # the checkpoint becomes an input, and the form writes a step about the tensor that was clicked last
    page.get_by_role("button", name="Use as input").click()
    turn_to(page, "Plan")
    assert page.get_by_label("target (required)").input_value() == r"h\.1\.attn\.weight"
    page.get_by_label("by (required)").fill("2")
    page.get_by_role("button", name="Add step").click()
    page.locator(".cm-content").get_by_text("scale_").wait_for()
    page.get_by_text("No mistakes.").wait_for()

    # a run would write nothing, and the preview says so
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_text("The plan has no output, so nothing is written.").wait_for()
    page.get_by_role("button", name="No-go").click()

    # a mistake is told at its line and column as one types, and mended
    plan = "inputs:\n  - model.safetensors\ntransforms:\n  - scale_:\n      target: h.1.attn.wieght\n      by: 2\n"
    write_plan(page, plan + "output: out.safetensors\n")
    page.get_by_text("5:15 error: scale_.target").wait_for()
    page.get_by_text("Did you mean 'h.1.attn.weight'?").wait_for()
    take_picture(page, "diagnosed")
    mended = plan.replace("wieght", "weight") + "output: out.safetensors\n"
    write_plan(page, mended)
    page.get_by_text("No mistakes.").wait_for()

    # preview, no-go, preview, go
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_text("changes 1: model::h.1.attn.weight").wait_for()
    page.get_by_text("writes out.safetensors").wait_for()
    take_picture(page, "preview")
    page.get_by_role("button", name="No-go").click()
    assert not (server.root / "out.safetensors").exists()
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_role("button", name="Go", exact=True).click()
    page.get_by_text("wrote out.safetensors: 11 tensors").wait_for()
    take_picture(page, "run")

    # what was there is there after a reload; another tab has a session of its own
    page.reload()
    turn_to(page, "Plan")
    page.get_by_text("wrote out.safetensors: 11 tensors").wait_for()
    other = page.context.new_page()
    other.goto(f"http://127.0.0.1:{server.port}/")
    turn_to(other, "Plan")
    other.get_by_text("Run: idle").wait_for()
    other.close()

    # compare
    page.get_by_role("button", name="Open", exact=True).last.click()
    turn_to(page, "Compare")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("1 differ, 10 equal, 0 only left, 0 only right").wait_for()
    page.get_by_role("cell", name="h.1.attn.weight").wait_for()
    take_picture(page, "compare")

    # download the result and the plan, undo the last change
    turn_to(page, "Plan")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download", exact=True).click()
    waiting.value.save_as(tmp_path / "downloaded.safetensors")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download plan").click()
    waiting.value.save_as(tmp_path / "plan.yaml")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("!document.querySelector('.cm-content').innerText.includes('attn.weight')")
    page.get_by_role("button", name="Redo").click()
    page.get_by_text("No mistakes.").wait_for()

    # replay the plan on the command line: the same bytes
    assert (tmp_path / "plan.yaml").read_text() == mended
    command = [sys.executable, "-m", "brainsurgery_jax", "run", str(tmp_path / "plan.yaml")]
    command.append(f"output={tmp_path / 'replayed.safetensors'}")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, cwd=server.root, check=True, capture_output=True, env=environment)
    written = (server.root / "out.safetensors").read_bytes()
    assert (tmp_path / "replayed.safetensors").read_bytes() == written
    assert (tmp_path / "downloaded.safetensors").read_bytes() == written
    before, after = load_file(server.root / "model.safetensors"), load_file(server.root / "out.safetensors")
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {"h.1.attn.weight"}
    np.testing.assert_array_equal(after["h.1.attn.weight"], 2 * before["h.1.attn.weight"])
    assert (dialogs, foreign) == ([], [])


def test_the_page_works_in_the_dark_and_in_a_narrow_window(page: Page, server: Server):
    page.set_viewport_size({"width": 420, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()
    assert page.locator("body.body--dark").count() == 1
    row = page.locator(".nicegui-row.items-center").first
    assert row.evaluate("(one) => getComputedStyle(one).alignItems") == "center"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    take_picture(page, "narrow-dark")
    turn_to(page, "Plan")
    page.get_by_label("target (required)").wait_for()
    assert "invert" in page.locator(".bs-editor").evaluate("(one) => getComputedStyle(one).filter")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    take_picture(page, "narrow-dark-plan")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, server: Server, scheme: Literal["light", "dark"]):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.goto(server.url)
    page.get_by_label("Search by pattern").fill(r"h\.\d+\.attn\.weight")
    page.get_by_role("button", name="h.1.attn.weight").click()
    page.get_by_role("button", name="Spectrum").click()
    page.get_by_text("of the energy in").wait_for()
    found: list[str] = []
    for view in ("Explore", "Plan", "Compare", "Low rank"):
        turn_to(page, view)
        wait_until_still(page)
        for one in Axe().run(page).response["violations"]:
            if one["impact"] in ("serious", "critical"):
                found += [
                    f"{view}: {one['id']}: {node['html'][:200]} {node['failureSummary'][:200]}" for node in one["nodes"]
                ]
    assert not found, "\n".join(found)


def test_a_file_is_uploaded_into_the_root_and_replaces_none(page: Page, server: Server, tmp_path: Path):
    write_model(tmp_path / "uploaded.safetensors")
    page.goto(server.url)
    page.locator("#pick-files").set_input_files(tmp_path / "uploaded.safetensors")
    page.get_by_role("heading", name="uploaded.safetensors").wait_for()
    stored = server.root / "uploaded.safetensors"
    assert stored.read_bytes() == (tmp_path / "uploaded.safetensors").read_bytes()
    (tmp_path / "uploaded.safetensors").write_bytes(b"other")
    page.locator("#pick-files").set_input_files(tmp_path / "uploaded.safetensors")
    page.get_by_text("exists already, and is not replaced").wait_for()
    assert stored.read_bytes() != b"other"
