"""A delta holds what a plan changed; with its base it is the whole checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError

Model = Mapping[str, np.ndarray]
NAMES = ("embed.w", "layers.0.w", "layers.1.w", "head.w")


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A model in `base/`, from which the tests run."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    tensors = {name: random.standard_normal((64, 32), np.float32) for name in NAMES}
    Path("base").mkdir()
    save_file(tensors, "base/model.safetensors")
    Path("base/config.json").write_text('{"model_type": "llama"}')
    return dict(load_file("base/model.safetensors"))


def write_delta(*steps: object, inputs: tuple[str, ...] = ("base",), path: str = "delta", **more: object) -> None:
    output = {"path": path, "format": "delta", **more}
    bs.run(bs.load({"inputs": list(inputs), "transforms": list(steps), "output": output}))


SCALE = {"scale_": {"target": "layers.0.w", "by": 2}}


def same(found: Mapping[str, np.ndarray], wanted: Model) -> bool:
    return set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_delta_holds_the_changed_tensors_alone(model: Model) -> None:
    write_delta(SCALE)
    assert same(load_file("delta/delta.safetensors"), {"layers.0.w": model["layers.0.w"] * 2})


def test_a_base_and_its_delta_are_the_whole_output(model: Model) -> None:
    write_delta(SCALE)
    found = bs.open("base + delta")
    assert list(found) == list(bs.open("base"))
    assert same(found, {**model, "layers.0.w": model["layers.0.w"] * 2})


def test_renamed_and_deleted_tensors_need_no_bytes(model: Model) -> None:
    write_delta(SCALE, {"move": {"from": "head.w", "to": "lm_head.w"}}, {"delete": {"target": "embed.w"}})
    assert list(load_file("delta/delta.safetensors")) == ["layers.0.w"]
    wanted = {"layers.0.w": model["layers.0.w"] * 2, "layers.1.w": model["layers.1.w"], "lm_head.w": model["head.w"]}
    assert same(bs.open("base + delta"), wanted)


def test_tensors_of_a_second_input_are_written(model: Model) -> None:
    save_file({"extra": np.ones(3, np.float32)}, "other.safetensors")
    copy = {"copy": {"from": "other::extra", "to": "base::extra"}}
    write_delta(copy, inputs=("base::base", "other::other.safetensors"), alias="base")
    assert same(bs.open("base + delta"), {**model, "extra": np.ones(3, np.float32)})


def test_a_plan_reads_a_sum_and_keeps_the_side_files_of_the_delta(model: Model) -> None:
    write_delta(SCALE, config={"model_type": "qwen2"})
    double = {"scale_": {"target": "head.w", "by": 2}}
    bs.run(bs.load({"inputs": ["base + delta"], "transforms": [double], "output": "whole"}))
    wanted = {**model, "layers.0.w": model["layers.0.w"] * 2, "head.w": model["head.w"] * 2}
    assert same(load_file("whole/model.safetensors"), wanted)
    assert "qwen2" in Path("whole/config.json").read_text()


def test_a_delta_of_a_sum_is_added_to_it(model: Model) -> None:
    write_delta(SCALE)
    write_delta({"scale_": {"target": "head.w", "by": 4}}, inputs=("base + delta",), path="second")
    wanted = {**model, "layers.0.w": model["layers.0.w"] * 2, "head.w": model["head.w"] * 4}
    assert same(bs.open("base + delta + second"), wanted)


def test_a_delta_of_a_delta_that_lacks_the_first_is_refused() -> None:
    write_delta(SCALE)
    write_delta({"scale_": {"target": "head.w", "by": 4}}, inputs=("base + delta",), path="second")
    with pytest.raises(StoreError, match=r"another checkpoint than base: values differ in layers\.0\.w"):
        bs.open("base + second")


def test_opening_a_sum_reads_the_ends_of_tensors_alone(model: Model) -> None:
    write_delta(SCALE)
    found = bs.open("base + delta")
    assert found.source.bytes_read == 3 * 2 * 256 * 4  # of three tensors that stay, both ends


def test_a_base_that_was_trained_on_is_refused(model: Model) -> None:
    write_delta(SCALE)
    shutil.copytree("base", "trained")
    save_file({name: value + (name == "head.w") for name, value in model.items()}, "trained/model.safetensors")
    with pytest.raises(StoreError, match=r"values differ in head\.w"):
        bs.open("trained + delta")


def test_a_base_with_other_names_is_refused_and_the_right_one_is_named(model: Model) -> None:
    write_delta(SCALE)
    Path("small").mkdir()
    save_file({"head.w": model["head.w"]}, "small/model.safetensors")
    with pytest.raises(StoreError, match="names, shapes or dtypes differ") as caught:
        bs.open("small + delta")
    assert caught.value.remedy == "It was written for 'base'."
    assert len(bs.open("base + delta")) == 4


def test_a_delta_alone_is_refused_and_the_remedy_reads_it() -> None:
    write_delta(SCALE)
    with pytest.raises(StoreError) as caught:
        bs.open("delta")
    assert caught.value.remedy == "Write 'base + delta'."
    assert len(bs.open("base + delta")) == 4


def test_a_sum_with_what_is_no_delta_is_refused() -> None:
    write_delta(SCALE)
    with pytest.raises(StoreError, match=r"is no delta\n.*Write BASE \+ DELTA"):
        bs.open("base + base")
    assert len(bs.open("base + delta")) == 4


def test_a_delta_without_a_base_is_refused_and_the_remedy_writes_it() -> None:
    steps = [{"assign": {"target": "w", "value": 1.0}}]
    plan = {"inputs": ["base"], "transforms": [{"scale_": {"target": ".*", "by": 2}}], "output": {"path": "d"}}
    refused = bs.check(bs.load({**plan, "output": {"path": "d", "format": "delta"}}))
    assert steps and [d.hint for d in refused] == ["Write `format: safetensors`: every tensor is new."]
    assert not bs.check(bs.load({**plan, "output": {"path": "d/", "format": "safetensors"}}))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', '{"version": 9}'])
def test_a_damaged_manifest_is_refused_and_writing_it_again_mends_it(content: str) -> None:
    write_delta(SCALE)
    Path("delta/brainsurgery.delta.json").write_text(content)
    with pytest.raises(StoreError, match="Write the delta again"):
        bs.open("base + delta")
    write_delta(SCALE, overwrite=True)
    assert len(bs.open("base + delta")) == 4


def test_a_delta_may_replace_a_delta_and_nothing_else() -> None:
    write_delta(SCALE)
    Path("delta/notes.txt").write_text("mine")
    with pytest.raises(bs.PlanError, match=r"notes\.txt"):
        write_delta(SCALE, overwrite=True)


def test_explain_counts_what_a_delta_writes_and_what_stays() -> None:
    output = {"path": "delta", "format": "delta"}
    found = bs.explain(bs.load({"inputs": ["base"], "transforms": [SCALE], "output": output}))
    (publication,) = found.program.publications
    assert (publication.nbytes, list(publication.written), len(publication.kept)) == (8192, ["layers.0.w"], 3)
    assert (found.bytes_copied, found.bytes_computed) == (0, 8192)
