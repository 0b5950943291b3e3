"""`explain --work`: the work of a run, item by item, for people and for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainsurgery_jax.cli import plans
from brainsurgery_jax.cli.options import More
from tests.null.world import write_zeros

STEPS = """
inputs: [m.safetensors]
transforms:
  - assert: {not: {iszero: e}}
  - move: {from: 'b\\.(.*)', to: 'bias.\\1'}
  - scale_: {target: e, by: 2}
  - transpose_: {target: t}
  - phlora_: {target: w, rank: 8}
output: out.safetensors
"""
MODEL = {"e": "f32[3000,1000]", "t": "f32[400,300]", "w": "f32[400,300]"} | {f"b.{i}": "f32[4]" for i in range(5)}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_zeros(tmp_path / "m.safetensors", MODEL)
    Path("plan.yaml").write_text(STEPS)
    return "plan.yaml"


def explain(plan: str, *, everything: bool = False, as_json: bool = False, work: bool = True) -> None:
    plans.explain([plan], More(work=work, everything=everything), overwrite=False, shard_size="5GB", json=as_json)


def test_a_row_says_what_is_done_where_what_it_reads_and_writes_and_what_for(
    plan: str, capsys: pytest.CaptureFixture[str]
):
    explain(plan)
    _, _, table = capsys.readouterr().out.partition("work: 4 items\n")
    heads, *rows = table.splitlines()
    assert heads.split() == ["item", "what", "where", "reads", "writes", "host", "for"]
    words = [row.split() for row in rows]
    assert [w[1] for w in words] == ["stream", "boxes", "whole", "copy"]
    assert words[0][:8] == ["1", "stream", "host", "11.4", "MB", "11.4", "MB", words[0][7]]
    assert rows[0].endswith("assert plan.yaml:4:5, e (3 blocks)")
    assert rows[3].split()[:6] == ["4", "copy", "80", "B", "80", "B"]
    assert rows[3].endswith("bias.0, bias.1, bias.2, and 2 more")


def test_the_work_is_shown_only_if_it_is_asked_for(plan: str, capsys: pytest.CaptureFixture[str]):
    explain(plan, work=False)
    assert "work:" not in capsys.readouterr().out


def test_the_first_items_are_shown_or_all(tmp_path: Path, plan: str, capsys: pytest.CaptureFixture[str]):
    write_zeros(tmp_path / "m.safetensors", {f"w{i}": "f32[400,300]" for i in range(30)})
    Path(plan).write_text(
        "inputs: [m.safetensors]\ntransforms: [{transpose_: {target: .*}}]\noutput: out.safetensors\n"
    )
    step = "phlora_: {target: .*, rank: 8}"
    Path(plan).write_text(f"inputs: [m.safetensors]\ntransforms: [{{{step}}}]\noutput: out.safetensors\n")
    explain(plan)
    assert capsys.readouterr().out.endswith("and 10 more items: --all shows them\n")
    explain(plan, everything=True)
    assert len(capsys.readouterr().out.partition("work: 30 items\n")[2].splitlines()) == 31


def test_scripts_get_every_item_with_its_key_and_the_machine_that_was_planned_for(
    plan: str, capsys: pytest.CaptureFixture[str]
):
    explain(plan, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["devices"] == 0
    assert [item["what"] for item in found["work"]] == ["stream", "boxes", "whole", "copy"]
    stream, *_, copy = found["work"]
    assert stream["questions"] == ["assert plan.yaml:4:5"]
    assert stream["tensors"] == [{"output": "out.safetensors", "name": "e"}]
    assert (stream["parts"], stream["bytes_read"], stream["bytes_written"]) == (3, 12_000_000, 12_000_000)
    assert (copy["where"], copy["host_bytes"], copy["needs"]) == ([], 0, [])
    assert len({item["key"] for item in found["work"]}) == 4
