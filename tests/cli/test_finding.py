"""`ops WORD` and `explain CODE`: how one finds what one does not know by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from brainsurgery_jax.cli.commands.explain import explain, explain_code
from brainsurgery_jax.cli.ops import ops
from brainsurgery_jax.reports.codes import code_pages
from tests.docs.test_diagnostics import codes


def test_a_name_of_an_op_is_its_page(capsys: pytest.CaptureFixture[str]):
    ops("quantize", json=False)
    assert capsys.readouterr().out.startswith("quantize\n")


def test_other_words_are_searched_in_names_and_descriptions(capsys: pytest.CaptureFixture[str]):
    ops("low-RANK factors", json=False)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("no op is named 'low-RANK factors'")
    assert "phlora" in [row.split()[0] for row in rows]
    ops("lora", json=True)
    found = json.loads(capsys.readouterr().out)["found"]
    assert {"phlora", "phlora_", "lora_extract"} <= set(found)
    assert all("lora" in name for name in found[:3])


def test_operators_of_assert_are_found(capsys: pytest.CaptureFixture[str]):
    ops("iszer", json=True)
    assert "assert.iszero" in json.loads(capsys.readouterr().out)["found"]


def test_what_is_nowhere_is_an_error():
    with pytest.raises(typer.BadParameter, match="there is no op 'xyzzy'"):
        ops("xyzzy", json=False)


def test_every_code_can_be_explained():
    assert codes() <= set(code_pages())


def test_the_page_of_a_code_has_an_example_and_no_comments(capsys: pytest.CaptureFixture[str]):
    assert explain_code("inexact", json=False)
    capsys.readouterr()
    explain(["no-match"])
    told = capsys.readouterr().out
    assert told.startswith("no-match\n\nNo name matches the pattern")
    assert "```yaml" in told
    assert "<!--" not in told
    assert explain_code("no-match", json=True)
    assert json.loads(capsys.readouterr().out)["code"] == "no-match"


def test_a_word_that_is_neither_a_plan_nor_a_code_names_the_nearest():
    with pytest.raises(typer.BadParameter, match=r"nor the code of a diagnostic\. Did you mean 'no-match'\?"):
        explain_code("no-matsh", json=False)


def test_plans_are_no_codes(here: Path):
    (here / "no-match").write_text("inputs: []", encoding="utf-8")
    assert not explain_code("no-match", json=False)
    assert not explain_code("plan.yaml", json=False)
