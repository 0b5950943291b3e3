"""What `diff` sums up, sorts and finds beside tensors, held against numpy; and that the step tells the same figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.cli.diff import Wishes, diff
from brainsurgery_jax.engine.events import Event, Said
from brainsurgery_jax.nametree import layer_of, module_of
from brainsurgery_jax.numerics import spectrum
from brainsurgery_jax.numerics.rollups import relative_change, roll_up, sort_differences
from brainsurgery_jax.rendering.text import as_text
from tests.checkpoints import Tensors, normal, write

PLAIN = Wishes()


@pytest.fixture
def sides(here: Path) -> tuple[Tensors, Tensors]:
    """Two checkpoints, `left` and `right`: layers that change by growing amounts, and an embedding turned around."""
    left = {f"h.{i}.{m}.w": normal((6, 5), seed=10 * i + len(m)) for i in (0, 2, 10) for m in ("attn", "mlp")}
    left |= {"wte": normal((4, 5), seed=99), "same": np.ones(3)}
    right = {name: x.copy() for name, x in left.items()}
    for i in (0, 2, 10):
        right[f"h.{i}.mlp.w"] += 0.01 * (i + 1) * np.outer(np.arange(6), np.ones(5))
    right["h.2.attn.w"] += normal((6, 5), seed=7)
    right["wte"] *= -1
    write(here / "left.safetensors", left)
    write(here / "right.safetensors", right)
    return left, right


def compare(**wishes: Any) -> bs.Difference:
    return bs.diff("left.safetensors", "right.safetensors", **wishes)


def test_a_name_has_a_layer_and_a_module():
    assert [layer_of(n) for n in ("h.10.w", "experts.3.h.4", "wte", "w2.x")] == [10, 3, None, None]
    assert [module_of(n) for n in ("h.10.w", "h.1.experts.3.w", "wte")] == ["h.*.w", "h.*.experts.*.w", "wte"]


def test_layers_sum_up_to_the_figures_of_their_elements(sides: tuple[Tensors, Tensors]):
    left, right = sides
    rows = roll_up(compare().differing, "layer")
    assert [(row.key, row.tensors) for row in rows] == [("0", 1), ("2", 2), ("10", 1), (None, 1)]
    names = ["h.2.attn.w", "h.2.mlp.w"]
    a, b = (np.concatenate([side[n].ravel() for n in names]) for side in (left, right))
    figures = rows[1].figures
    assert (figures.size, figures.differing) == (60, np.count_nonzero(a != b))
    np.testing.assert_allclose(figures.largest, np.abs(a - b).max())
    np.testing.assert_allclose(figures.relative or 0, np.linalg.norm(a - b) / np.linalg.norm(a))
    np.testing.assert_allclose(figures.cosine or 0, a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_modules_come_together_over_layers(sides: tuple[Tensors, Tensors]):
    rows = roll_up(compare().differing, "module")
    assert {row.key: row.tensors for row in rows} == {"h.*.attn.w": 1, "h.*.mlp.w": 3, "wte": 1}
    cells = relative_change(compare().differing)
    assert set(cells) == {("h.*.attn.w", 2), ("h.*.mlp.w", 0), ("h.*.mlp.w", 2), ("h.*.mlp.w", 10), ("wte", None)}
    np.testing.assert_allclose(cells["wte", None], 2)


def test_the_most_changed_comes_first(sides: tuple[Tensors, Tensors]):
    left, right = sides
    found = compare(effective_rank=True).differing
    changes = {one.name: np.linalg.norm(left[one.name] - right[one.name]) / np.linalg.norm(left[one.name])
               for one in found}  # fmt: skip
    by_change = [one.name for one in sort_differences(found, "change")]
    assert by_change == sorted(changes, key=changes.__getitem__, reverse=True)
    assert sort_differences(found, "cosine")[0].name == "wte"
    by_rank = sort_differences(found, "rank")
    assert {one.name for one in by_rank[:2]} == {"wte", "h.2.attn.w"}
    np.testing.assert_allclose([one.effective_rank or 0 for one in by_rank[2:]], 1, rtol=1e-3)


def test_what_is_not_finite_or_was_zero_comes_first_and_other_shapes_last(here: Path):
    left = {"a": np.ones(3), "b": np.zeros(3), "c": np.ones(2)}
    right = {"a": np.full(3, 1.1), "b": np.ones(3), "c": np.ones(3)}
    found = bs.diff(write(here / "l.safetensors", left), write(here / "r.safetensors", right))
    assert [one.name for one in sort_differences(found.differing, "change")] == ["b", "a", "c"]


def test_the_effective_rank_of_a_change_is_asked_for(sides: tuple[Tensors, Tensors]):
    assert {one.effective_rank for one in compare().differing} == {None}


def command(capsys: pytest.CaptureFixture[str], wishes: Wishes = PLAIN, *, json: bool = False) -> str:
    """What the command prints of `left` and `right`."""
    assert diff("left.safetensors", "right.safetensors", wishes, json=json) == 1
    return capsys.readouterr().out


def test_the_command_lists_the_first_and_sums_up(sides: tuple[Tensors, Tensors], capsys: pytest.CaptureFixture[str]):
    listed = command(capsys, Wishes(order="change", top=2)).splitlines()
    assert listed[0] == "other values, most changed first:"
    assert [line.split()[0] for line in listed[1:3]] == ["wte", "h.2.attn.w"]
    assert listed[3:6] == ["", "and 3 more, left out by `--top 2`", ""]
    grouped = command(capsys, Wishes(by="layer")).splitlines()
    assert [line.split()[0] for line in grouped[1:4]] == ["0", "2", "10"]
    data = json.loads(command(capsys, Wishes(by="module", order="rank", effective_rank=True), json=True))
    assert [row["key"] for row in data["by_module"]] == ["h.*.mlp.w", "h.*.attn.w", "wte"]
    assert set(list(data["differing"])[:2]) == {"wte", "h.2.attn.w"}
    assert data["differing"]["wte"]["effective_rank"] > 3


def folders(here: Path, left: dict[str, str], right: dict[str, str]) -> bs.Difference:
    for name, files in (("a", left), ("b", right)):
        (here / name).mkdir()
        write(here / name / "model.safetensors", {"w": np.ones(2)})
        for path, text in files.items():
            (here / name / path).write_text(text, encoding="utf-8")
    return bs.diff(here / "a", here / "b")


def test_configs_are_compared_by_their_keys_and_other_side_files_by_their_bytes(here: Path):
    left = {"config.json": '{"n": 2, "rope": {"theta": 1, "kind": "x"}}', "README.md": "a", "vocab.txt": "one"}
    right = {"config.json": '{"rope": {"kind": "x", "theta": 2.5}, "m": [1], "n": 2}', "vocab.txt": "two!"}
    found = folders(here, left, right)
    assert found.same
    assert found.side_files == {
        "README.md": ("1 bytes", ""),
        "config.json: m": ("", "[1]"),
        "config.json: rope.theta": ("1", "2.5"),
        "vocab.txt": ("3 bytes", "4 other bytes"),
    }
    assert repr(found).endswith("1 equal, 4 other side files>")


def test_side_files_that_say_the_same_are_no_difference(here: Path):
    assert not folders(here, {"config.json": '{"n": 2}'}, {"config.json": '{ "n":2 }'}).side_files


def test_a_file_has_no_side_files(here: Path):
    found = folders(here, {"config.json": "{}"}, {})
    assert list(found.side_files) == ["config.json"]
    assert not bs.diff(here / "a/model.safetensors", here / "b").side_files


def test_the_step_tells_the_figures_of_the_command(sides: tuple[Tensors, Tensors], capsys: pytest.CaptureFixture[str]):
    step = {"mode": "aliases", "left_alias": "a", "right_alias": "b"}
    plan = {"inputs": ["a::left.safetensors", "b::right.safetensors"], "transforms": [{"diff": step}]}
    (said,) = bs.load(plan).run().said
    told = command(capsys).splitlines()
    for one in compare().differing:
        (line,) = (line for line in said.splitlines() if line.startswith(f"  - {one.name}: "))
        (row,) = (line for line in told if line.startswith(f"  {one.name} "))
        assert line.partition(": ")[2].replace("; ", "").split() == row.split("]", 1)[1].replace("  ", "").split()


def say(**keys: Any) -> list[str]:
    """What the step says of the two checkpoints."""
    step = {"mode": "aliases", "left_alias": "a", "right_alias": "b", **keys}
    plan = {"inputs": ["a::left.safetensors", "b::right.safetensors"], "transforms": [{"diff": step}]}
    (said,) = bs.load(plan).run().said
    return said.splitlines()


def squeeze(line: str) -> list[str]:
    """The words of a line, without what separates columns."""
    return line.replace(";", " ").replace(":", " ").replace("-", " ").replace(",", " ").split()


@pytest.mark.parametrize(
    "keys",
    [{"by": "layer"}, {"by": "module"}, {"effective_rank": True}, {"sort": "change", "top": 3}, {"sort": "cosine"},
     {"sort": "rank", "top": 2}, {"by": "layer", "effective_rank": True}],
    ids=str,
)  # fmt: skip
def test_the_step_sums_up_and_sorts_as_the_command(
    sides: tuple[Tensors, Tensors], capsys: pytest.CaptureFixture[str], keys: dict[str, Any]
):
    lines = say(**keys)
    start = next(at for at, line in enumerate(lines) if line.startswith("figures"))
    rank = keys.get("effective_rank", False) or keys.get("sort") == "rank"
    wishes = Wishes(effective_rank=rank, order=keys.get("sort", "name"), top=keys.get("top"), by=keys.get("by"))
    told = [line for line in command(capsys, wishes).splitlines() if " differ" in line]
    rows = [line for line in lines[start + 1 :] if " differ;" in line]
    assert rows and len(rows) == min(len(told), keys.get("top", 99))
    for row, line in zip(rows, told, strict=True):
        assert squeeze(row) == squeeze(re.sub(r" f32\[[0-9,]+\]", "", line))
    assert (f"{len(compare().differing) - keys['top']:,} more" in lines[-1]) if "top" in keys else True


def test_a_prompt_tells_the_figures_of_the_command(sides: tuple[Tensors, Tensors]):
    session = bs.Session.begin(bs.load({"inputs": ["a::left.safetensors", "b::right.safetensors"]}))
    step = "diff: {mode: aliases, left_alias: a, right_alias: b, by: layer, effective_rank: true}"
    heard: list[Event] = []
    session.step(*session.parse(step)).run(heard.append)
    (told,) = (as_text(event.document) for event in heard if isinstance(event, Said))
    assert told.splitlines() == say(by="layer", effective_rank=True)


def test_figures_that_are_switched_off_cannot_be_summed_up(sides: tuple[Tensors, Tensors]):
    for keys in ({"by": "layer"}, {"sort": "change"}, {"effective_rank": True}):
        with pytest.raises(bs.PlanError, match=r"without figures there is nothing.*\n.*Leave out `figures: false`"):
            say(figures=False, **keys)
    assert not any(line.startswith("figures") for line in say(figures=False))


def test_equal_matrices_are_not_factorized_for_their_difference(here: Path, monkeypatch: pytest.MonkeyPatch):
    w = normal((6, 5), seed=1)
    write(here / "left.safetensors", {"w": w, "v": w})
    write(here / "right.safetensors", {"w": w.copy(), "v": w + 1})
    factorized: list[tuple[int, ...]] = []
    true = spectrum.singular_values
    monkeypatch.setattr(spectrum, "singular_values", lambda x: factorized.append(x.shape) or true(x))
    lines = say(effective_rank=True)
    assert "effective rank 1.0" in lines[-1]
    assert factorized == [(6, 5)]
