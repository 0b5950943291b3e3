"""Files of a sharded checkpoint that stay files: where an output is cut, if the plan asks for no size."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import brainsurgery_jax as bs
from brainsurgery_jax.api import explain
from brainsurgery_jax.rendering.data import as_json, record_data
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.reports.explanation import report_explanation
from brainsurgery_jax.store.index_files import INDEX, shard_name
from brainsurgery_jax.store.io import local
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, read, write

PT = {"format": "pt"}
LAYER = 80  # bytes of the two tensors of a shard
SCALE = {"scale_": {"target": r"h\.4\.w", "by": 2}}


def sharded(folder: Path, count: int, metadata: Mapping[str, str] = PT) -> Path:
    """A model of so many shards, a layer each, with an index. Their data begin at odd places, where ours never do."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for n in range(count):
        layer = {f"h.{n}.w": normal((4, 4), seed=n), f"h.{n}.b": normal((4,), seed=-n % 99)}
        path = write(folder / shard_name(n + 1, count), layer, metadata)
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        path.write_bytes((end - 8 + 3).to_bytes(8, "little") + raw[8:end] + b" \n " + raw[end:])
        weight_map |= dict.fromkeys(layer, path.name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": count * LAYER}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sharded(tmp_path / "model", 10)


def plan_for(model: Path, steps: Sequence[Any], **output: Any) -> dict[str, Any]:
    path = model.parent / "out"
    return {"inputs": [f"m::{model}"], "transforms": list(steps), "output": {"path": f"{path}/"} | output}


def surgery(model: Path, *steps: Any, world: Files | None = None, **output: Any) -> Path:
    """The folder that a plan with these steps makes of the model."""
    bs.load(plan_for(model, steps, **output)).run(durable=False, world=world, lock=False)
    return model.parent / "out"


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != INDEX)


def kept(model: Path, out: Path) -> dict[str, str]:
    """The files of the output that are one of the model byte for byte, and which."""
    before = {(model / name).read_bytes(): name for name in files(model)}
    return {name: before[raw] for name in files(out) if (raw := (out / name).read_bytes()) in before}


def contents(folder: Path) -> dict[str, np.ndarray]:
    return {name: x for file in files(folder) for name, x in safetensors.numpy.load_file(folder / file).items()}


def test_of_ten_shards_one_changes_and_nine_stay_what_they_were(model: Path) -> None:
    out = surgery(model, SCALE)
    names = files(model)
    assert files(out) == names
    assert kept(model, out) == {name: name for name in names if name != names[4]}
    expected = contents(model)
    expected["h.4.w"] = 2 * expected["h.4.w"]
    found = contents(out)
    assert {name: x.tobytes() for name, x in found.items()} == {name: x.tobytes() for name, x in expected.items()}


def test_the_index_tells_the_truth_of_kept_files_and_others(model: Path) -> None:
    out = surgery(model, SCALE, {"delete": {"target": r"h\.(0|7)\..*"}})
    index = json.loads((out / INDEX).read_bytes())
    assert index["metadata"]["total_size"] == 8 * LAYER
    assert index["weight_map"] == {name: file for file in files(out) for name in read(out / file)}
    assert len(files(out)) == 8
    assert files(out) == [shard_name(n, 8) for n in range(1, 9)]
    assert len(kept(model, out)) == 7


def test_what_lies_between_kept_files_is_cut_by_the_limit(model: Path) -> None:
    world = Files(default_shard=f"{2 * LAYER}B")
    out = surgery(model, {"scale_": {"target": r"h\.[2-6]\.w", "by": 2}}, world=world)
    layers = [sorted({name.split(".")[1] for name in read(out / file)}) for file in files(out)]
    assert layers == [["0"], ["1"], ["2", "3"], ["4", "5"], ["6"], ["7"], ["8"], ["9"]]
    assert len(kept(model, out)) == 5


def test_a_new_tensor_among_the_others_stands_between_kept_files(model: Path) -> None:
    out = surgery(model, {"copy": {"from": r"h\.0\.w", "to": "head"}})
    assert len(files(out)) == 11
    assert list(read(out / files(out)[-1])) == ["head"]
    assert len(kept(model, out)) == 10


def test_a_size_that_the_plan_asks_for_decides_alone(model: Path) -> None:
    out = surgery(model, SCALE, shard=f"{3 * LAYER}B")
    assert [len(read(out / file)) for file in files(out)] == [6, 6, 6, 2]
    assert list(kept(model, out).values()) == [files(model)[9]]


def test_no_shards_at_all_may_be_asked_for(model: Path) -> None:
    assert files(surgery(model, SCALE, shard="none")) == ["model.safetensors"]


def test_a_file_above_the_limit_is_cut(model: Path) -> None:
    out = surgery(model, world=Files(default_shard=f"{LAYER - 1}B"))
    assert [len(read(out / file)) for file in files(out)] == [1] * 20
    assert not kept(model, out)


def test_a_file_of_one_tensor_above_the_limit_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for number, name in enumerate("ab", 1):
        write(tmp_path / "model" / shard_name(number, 2), {name: normal((9,))}, PT)
    out = surgery(tmp_path / "model", world=Files(default_shard="8B"))
    assert len(kept(tmp_path / "model", out)) == 2


def test_where_every_tensor_changes_files_are_cut_by_size(model: Path) -> None:
    assert files(surgery(model, {"scale_": {"target": ".*", "by": 2}})) == ["model.safetensors"]


def test_other_metadata_leave_no_file_what_it_was(model: Path) -> None:
    out = surgery(model, metadata={"note": "ours"})
    assert files(out) == ["model.safetensors"]


def test_tensors_that_stand_apart_do_not_keep_their_file(model: Path) -> None:
    away = [{"copy": {"from": r"h\.3\.w", "to": "x"}}, {"delete": {"target": r"h\.3\.w"}}]
    out = surgery(model, *away, {"move": {"from": "x", "to": "h.3.w"}})
    names = files(model)
    assert set(kept(model, out).values()) == set(names) - {names[3]}
    assert list(read(out / files(out)[-1])) == ["h.3.w"]


def test_one_file_that_grows_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "model/model.safetensors", {"w": normal((5, 2))}, PT)
    out = surgery(tmp_path / "model", {"copy": {"from": "w", "to": "v"}})
    assert files(out) == ["model.safetensors"]


def test_the_only_file_that_is_left_of_many_needs_no_index(model: Path) -> None:
    out = surgery(model, {"delete": {"target": r"h\.[1-9]\..*"}})
    assert sorted(os.listdir(out)) == ["model.safetensors"]
    assert kept(model, out) == {"model.safetensors": files(model)[0]}


def test_files_of_two_checkpoints_may_follow_each_other(tmp_path: Path) -> None:
    first = sharded(tmp_path / "first", 3)
    second = sharded(tmp_path / "second", 6)
    steps = [{"copy": {"from": rf"b::h\.{n}\.(.*)", "to": rf"a::h.{n}.\1"}} for n in (3, 4, 5)]
    plan = {"inputs": [f"a::{first}", f"b::{second}"], "transforms": steps, "output": f"{tmp_path}/out/"}
    bs.load(plan | {"output": {"path": f"{tmp_path}/out/", "alias": "a"}}).run(durable=False, lock=False)
    assert len(files(tmp_path / "out")) == 6
    assert len(kept(first, tmp_path / "out")) == 3
    assert len(kept(second, tmp_path / "out")) >= 3


def test_the_same_plan_gives_the_same_bytes_again(model: Path) -> None:
    first = surgery(model, SCALE)
    first.rename(model.parent / "first")
    second = surgery(model, SCALE)
    again = {name: (second / name).read_bytes() for name in os.listdir(second)}
    assert again == {name: (model.parent / "first" / name).read_bytes() for name in os.listdir(model.parent / "first")}


def test_a_kept_file_has_the_mode_of_the_others(model: Path) -> None:
    for name in files(model):
        (model / name).chmod(0o400)
    out = surgery(model, SCALE)
    assert len({stat.S_IMODE((out / name).stat().st_mode) for name in files(out)}) == 1
    assert stat.S_IMODE((out / files(out)[0]).stat().st_mode) & 0o200


def counted(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts tensor bytes by how they come into the output."""
    counts: Counter[str] = Counter()
    put, copy = ByteSink.put, local.copy_range

    def putting(sink: ByteSink, name: str, start: int, data: np.ndarray) -> None:
        counts["put"] += data.nbytes
        put(sink, name, start, data)

    def copying(source: int, at: int, target: int, offset: int, nbytes: int, *, path: str) -> None:
        counts["copied"] += nbytes
        copy(source, at, target, offset, nbytes, path=path)

    patch.setattr(ByteSink, "put", putting)
    patch.setattr(local, "copy_range", copying)
    return counts


def test_where_files_can_be_cloned_only_the_changed_one_is_written(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(source: int, target: int) -> bool:
        os.pwrite(target, os.pread(source, 1 << 20, 0), 0)
        return True

    monkeypatch.setattr(local, "clone", clone)
    counts = counted(monkeypatch)
    out = surgery(model, SCALE)
    assert counts == {"put": 64, "copied": 16}  # the scaled tensor, and the other one of its file
    assert len(kept(model, out)) == 9


def test_where_they_cannot_their_bytes_are_copied_from_file_to_file(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "clone", lambda source, target: False)
    counts = counted(monkeypatch)
    assert len(kept(model, surgery(model, SCALE))) == 9
    assert counts == {"put": 64, "copied": 10 * LAYER - 64}


def told(model: Path, *steps: Any, **output: Any) -> tuple[str, dict[str, Any]]:
    """What `explain` says of the files of the output, as text and as data."""
    found = explain(bs.load(plan_for(model, steps, **output)))
    report = report_explanation(found, None)
    line = next((line for line in as_text(report).splitlines() if "file" in line), "")
    return line.strip(), json.loads(as_json(**record_data(report)))["outputs"][0]


def test_explain_tells_of_kept_files(model: Path) -> None:
    line, data = told(model, SCALE)
    assert line == "10 files, 9 of them an unchanged file of an input: 720 B"
    assert (data["files"], data["files_kept"], data["bytes_kept"]) == (10, 9, 9 * LAYER)
    assert told(model)[0] == "10 files, each an unchanged file of an input: 800 B"
    assert told(model, SCALE, shard=f"{3 * LAYER}B")[0] == "4 files, 1 of them an unchanged file of an input: 80 B"
    assert told(model, {"scale_": {"target": ".*", "by": 2}}, shard="400B")[0] == "2 files"


def test_explain_says_nothing_of_one_file(model: Path) -> None:
    assert told(model, SCALE, shard="none")[0] == ""
    data = told(model, path=str(model.parent / "out.npz"))[1]
    assert "files" not in data
