"""Stories of people who write plans: completion, lines, reordering, composite steps, folders, and no mouse."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from tests.web.conftest import Server, take_picture, turn_to, write_plan

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("playwright", reason="NO BROWSER TEST: Playwright is not installed (make venv installs it)")

HEAD = "inputs:\n  - model.safetensors\ntransforms:\n"
TWO = HEAD + "  - scale_: {target: wte.weight, by: 2}\n  - delete: {target: wte.weight}\n"


def open_plan(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()
    turn_to(page, "Plan")
    page.locator(".cm-content").wait_for()


def plan_of(page: Page) -> dict[str, list[object]]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download plan").click()
    return yaml.safe_load(Path(waiting.value.path()).read_text())


def wait_for_text(page: Page, text: str) -> None:
    page.wait_for_function("(text) => document.querySelector('.cm-content').innerText.includes(text)", arg=text)


@pytest.mark.parametrize(
    ("typed", "option", "made"),
    [
        ("  - scal", "scale_", "- scale_: "),
        ("  - scale_: {tar", "target", "{target: "),
        ("  - scale_: {target: wte", "wte.weight", "{target: wte.weight"),
    ],
)
def test_the_editor_completes_ops_keys_and_names_of_tensors(
    page: Page, server: Server, typed: str, option: str, made: str
):
    open_plan(page, server)
    write_plan(page, HEAD + typed)
    page.keyboard.press("Control+Space")
    page.get_by_role("option", name=option).first.click()
    wait_for_text(page, made)


def test_completion_knows_what_the_steps_before_have_made(page: Page, server: Server):
    open_plan(page, server)
    made = "inputs:\n  - model.safetensors\ntransforms:\n  - copy: {from: wte.weight, to: fresh.weight}\n"
    write_plan(page, made + "  - scale_: {target: fre")
    page.keyboard.press("Control+Space")
    page.get_by_role("option", name="fresh.weight").first.wait_for()


def test_steps_are_moved_removed_and_typed_on_a_line(page: Page, server: Server):
    open_plan(page, server)
    write_plan(page, TWO)
    page.get_by_text("1. scale_: target: wte.weight, by: 2").wait_for()
    page.get_by_role("button", name="Move step 2 up").click()
    page.get_by_text("2. scale_: target: wte.weight, by: 2").wait_for()
    page.get_by_text("no tensor matches 'wte.weight'").wait_for()  # it is deleted now before it is scaled
    page.get_by_role("button", name="Remove step 1").click()
    page.get_by_text("No mistakes.").wait_for()
    page.get_by_label("A step on one line").fill("delete: target: 'h\\.2\\..*'")
    page.get_by_role("button", name="Add line").click()
    page.get_by_text("2. delete:").wait_for()
    assert plan_of(page)["transforms"] == [
        {"scale_": {"target": "wte.weight", "by": 2}}, {"delete": {"target": "h\\.2\\..*"}},
    ]  # fmt: skip
    page.get_by_label("A step on one line").fill("delete: [")
    page.get_by_label("A step on one line").press("Enter")
    page.get_by_role("alert").filter(has_text="[").first.wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("2. delete:").wait_for(state="detached")


def test_a_move_is_written_by_the_form_and_previewed(page: Page, server: Server):
    open_plan(page, server)
    turn_to(page, "Explore")
    page.get_by_role("button", name="Use as input").click()
    turn_to(page, "Plan")
    page.get_by_label("Op", exact=True).fill("move")
    page.get_by_role("option", name="move", exact=True).click()
    page.get_by_label("from (required)").fill(r"h\.(\d+)\.attn\.weight")
    page.get_by_label("to (required)").fill(r"layers.\1.attention.weight")
    take_picture(page, "figure-5-move-form")
    page.get_by_role("button", name="Add step").click()
    page.get_by_text("No mistakes.").wait_for()
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_text("creates 3: model::layers.0.attention.weight").wait_for()
    page.get_by_role("button", name="No-go").click()


def choose(page: Page, form: str) -> None:
    page.get_by_label("Op", exact=True).fill(form)
    page.get_by_role("option", name=form, exact=True).click()


def test_an_assert_and_a_recipe_are_written_by_the_form_into_a_plan_without_mistakes(page: Page, server: Server):
    open_plan(page, server)
    choose(page, "recipe magnitude-pruning")
    page.get_by_label("model (required)").fill("model.safetensors")
    page.get_by_label("out (required)").fill("pruned.safetensors")
    page.get_by_role("button", name="Add step").click()
    page.get_by_text("1. execute:").wait_for()
    choose(page, "load")
    page.get_by_label("path (required)").fill("pruned.safetensors")
    page.get_by_role("button", name="Add step").click()
    page.get_by_text("2. load:").wait_for()
    choose(page, "assert count")
    page.get_by_label("of (required)").fill("model::.*")
    page.get_by_label("is (required)").fill("11")
    page.get_by_role("button", name="Add step").click()
    page.get_by_text("3. assert:").wait_for()
    page.get_by_text("No mistakes.").wait_for()
    assert plan_of(page)["transforms"] == [
        {"execute": {"recipe": {"magnitude-pruning": {"model": "model.safetensors", "out": "pruned.safetensors"}}}},
        {"load": {"path": "pruned.safetensors"}},
        {"assert": {"count": {"of": "model::.*", "is": 11}}},
    ]


def test_a_composite_step_shows_the_steps_that_it_stands_for(page: Page, server: Server):
    open_plan(page, server)
    inner = "transforms: [{scale_: {target: wte.weight, by: 2}}, {delete: {target: h.2.mlp.bias}}]"
    write_plan(page, f"inputs:\n  - model.safetensors\ntransforms:\n  - execute: {{{inner}}}\n")
    page.get_by_text("No mistakes.").wait_for()
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_role("button", name="stands for 2 steps").click()
    dialog = page.get_by_role("dialog", name="Preview")
    dialog.get_by_text("deletes 1: model::h.2.mlp.bias").last.wait_for()
    dialog.get_by_text("scale_: target: wte.weight, by: 2").last.wait_for()


def test_a_folder_comes_by_upload_is_run_and_goes_as_an_archive(page: Page, server: Server, tmp_path: Path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({"a": np.arange(4, dtype="f4")}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "none"}')
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()
    page.locator("#pick-folder").set_input_files(folder)
    page.get_by_role("heading", name="sharded", exact=True).wait_for()
    assert (server.root / "sharded" / "config.json").read_text() == '{"model_type": "none"}'
    turn_to(page, "Plan")
    write_plan(page, "inputs:\n  - sharded\ntransforms:\n  - scale_: {target: a, by: 2}\noutput: made/\n")
    page.get_by_text("No mistakes.").wait_for()
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_role("button", name="Go", exact=True).click()
    page.get_by_text("Run: done").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download as tar").click()
    with tarfile.open(waiting.value.path()) as archive:
        assert {"made/model.safetensors", "made/config.json"} <= set(archive.getnames())
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download resolved plan").click()
    assert yaml.safe_load(Path(waiting.value.path()).read_text())["inputs"] == ["model::sharded"]


def test_a_session_goes_as_a_resolved_plan_with_a_lock_that_the_command_line_agrees_with(
    page: Page, server: Server, tmp_path: Path
):
    open_plan(page, server)
    head = f"vars: {{by: 2}}\n{HEAD}  - scale_: {{target: 'h.*weight', by: '${{vars.by}}'}}\n"
    write_plan(page, head + "output: locked.safetensors\n")
    page.get_by_text("No mistakes.").wait_for()
    page.get_by_role("checkbox", name="Lock").click()
    page.get_by_role("button", name="Preview and run").click()
    page.get_by_text("writes locked.safetensors.lock.json").wait_for()
    page.get_by_role("button", name="Go", exact=True).click()
    page.get_by_text("wrote locked.safetensors: 11 tensors").wait_for()
    links = {
        "lock.json": page.get_by_role("link", name="Download lock"),
        "plan.yaml": page.get_by_role("button", name="Download resolved plan"),
    }
    for name, link in links.items():
        with page.expect_download() as waiting:
            link.click()
        waiting.value.save_as(tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "brainsurgery_jax",
        str(tmp_path / "plan.yaml"),
        "--locked",
        str(tmp_path / "lock.json"),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    again = tmp_path / "again.safetensors"
    subprocess.run([*command, f"output={again}"], cwd=server.root, check=True, capture_output=True, env=environment)
    assert again.read_bytes() == (server.root / "locked.safetensors").read_bytes()
    changed = [*command, f"output={tmp_path / 'changed.safetensors'}", "transforms[0].scale_.by=3"]
    refused = subprocess.run(changed, cwd=server.root, capture_output=True, text=True, env=environment)
    assert refused.returncode and "the plan differs from step 1 on" in refused.stderr


def test_a_checkpoint_is_opened_and_looked_at_without_a_mouse(page: Page, server: Server):
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()

    def reach(name: str) -> None:
        """Press Tab until an element with this label or text has the focus."""
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            told = page.evaluate(
                "(e => (e.getAttribute('aria-label') || e.innerText || '').trim())(document.activeElement)"
            )
            if told.startswith(name):
                return
            seen.append(told)
        pytest.fail(f"Tab does not reach '{name}': {seen}")

    reach("Search by pattern")
    page.keyboard.type("h.1.attn.weight")
    page.get_by_text("1 of 11 match").wait_for()
    reach("h.1.attn.weight")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="h.1.attn.weight").wait_for()
    reach("Heat map")
    page.keyboard.press("Enter")
    page.get_by_role("img", name="Heat map: h.1.attn.weight").wait_for()
    reach("Zoom in")
    page.keyboard.press("Enter")
    page.get_by_text("each cell is a value").wait_for()
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "INPUT"


def test_the_keyboard_leaves_the_editor_by_escape_and_tab(page: Page, server: Server):
    page.goto(server.url)
    turn_to(page, "Plan")
    page.get_by_text("Esc, then Tab leaves the editor.").wait_for()
    page.locator(".cm-content").click()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.classList.contains('cm-content')")  # it indents
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.closest('.cm-editor')")
