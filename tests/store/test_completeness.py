"""Folders whose files disagree, as they are found: each is read right, or refused with the names of the files and a
way out that works."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.completeness import read_name

S1, S2, S3 = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2, 3))
A, B, C = ({name: float(value)} for value, name in enumerate("abc", 1))
INDEX = "model.safetensors.index.json"
ADAPTER = {"base_model.model.a.lora_A.weight": 1.0}

Files = Mapping[str, Mapping[str, float]]


def folder(place: Path, files: Files, index: Mapping[str, Any] | None = None, others: Mapping[str, str] = {}) -> Path:
    """A folder of weight files; each tensor holds its value twice. `index`: the file of each tensor, or all of it."""
    place.mkdir()
    for name, tensors in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        arrays = {key: np.full(2, value, np.float32) for key, value in tensors.items()}
        if name.endswith(".safetensors"):
            save_file(arrays, place / name)
        else:
            torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, place / name)
    if index is not None:
        whole = index if "weight_map" in index else {"metadata": {"total_size": 0}, "weight_map": index}
        (place / INDEX).write_text(json.dumps(whole))
    for name, text in {"config.json": "{}", **others}.items():
        (place / name).write_text(text)
    return place


class Row(NamedTuple):
    """A folder, and what comes of it: the values that are read and the files that a note names, or an error. `way`: a
    path below the folder that the remedy names, and what is read there."""

    files: Files
    weight_map: Mapping[str, Any] | None = None
    reads: Mapping[str, float] | None = None
    ignored: str = ""
    error: str = ""
    way: tuple[str, Mapping[str, float]] | None = None
    others: Mapping[str, str] = {}


BY_INDEX = {"a": S1, "b": S2}
BOTH = {**A, **B}

ROWS = {
    # An index decides. What it does not name is ignored, unless its name says that it belongs to it.
    "stray": Row(
        {S1: A, S2: B, "model.safetensors": {"a": 9, "b": 9, "a.scales": 9}}, BY_INDEX, BOTH, "model.safetensors"
    ),
    "mistral": Row({S1: A, S2: B, "consolidated.safetensors": C}, BY_INDEX, BOTH, "consolidated.safetensors"),
    "omits": Row(
        {S1: A, S2: B, "model-mtp-of-00002.safetensors": C}, BY_INDEX,
        error="does not list 'model-mtp-of-00002.safetensors', which is a shard by its name", way=(INDEX, BOTH),
    ),
    "omits in a shard": Row(
        {S1: {**A, "mtp.fc": 3}, S2: B}, BY_INDEX, way=(INDEX, BOTH),
        error=f"tensor 'mtp.fc': is in {S1}, but the index does not list it",
    ),
    "twice the same": Row(
        {S1: A, S2: BOTH}, BY_INDEX, way=(INDEX, BOTH),
        error=f"tensor 'a': is in {S2}, but the index lists it in {S1}",
    ),
    "twice and different": Row(
        {S1: A, S2: {"a": 5, **B}}, BY_INDEX, way=(INDEX, BOTH),
        error=f"tensor 'a': is in {S2}, but the index lists it in {S1}",
    ),
    # What an index promises must be there.
    "points at nothing": Row(
        {S1: A, S2: B}, {**BY_INDEX, "mtp.fc": S2}, error=f"tensor 'mtp.fc': should be in {S2}, but no shard holds it"
    ),
    "points elsewhere": Row(
        {S1: A, S2: B}, {"a": S2, "b": S2},
        error=f"tensor 'a': should be in {S2}, but no shard holds it; nor is '{S1}' listed",
    ),
    "points to the other shard": Row(
        {S1: A, S2: B}, {"a": S2, "b": S1}, error=f"tensor 'a': should be in {S2}, but it is in {S1}"
    ),
    "a shard of an index is missing": Row({S1: A}, BY_INDEX, error=f"names the shard '{S2}', which is not there"),
    "index and metadata null": Row({S1: A, S2: B}, {"metadata": None, "weight_map": BY_INDEX}, BOTH),
    "index with shards in a folder": Row(
        {f"w/{S1}": A, f"w/{S2}": B}, {"a": f"w/{S1}", "b": f"./w/{S2}"}, BOTH
    ),
    "index that leads outside": Row(
        {S1: A}, {"a": S1, "b": f"../stray/{S2}"}, error=f"names the shard '../stray/{S2}', which is outside"
    ),
    "index that leads outside and back": Row(
        {S1: A}, {"a": f"w/../{S1}"}, error="which is outside of its folder"
    ),
    # Without one, names tell.
    "no index": Row({S1: A, S2: B}, reads=BOTH),
    "first missing": Row({S2: B}, error=f"1 of 2 shards is missing: {S1}", way=(S2, B)),
    "last missing": Row({S1: A}, error=f"1 of 2 shards is missing: {S2}", way=(S1, A)),
    "middle missing": Row(
        {"model-00001-of-00003.safetensors": A, "model-00003-of-00003.safetensors": B},
        error="1 of 3 shards is missing: model-00002-of-00003.safetensors",
        way=("model-00003-of-00003.safetensors", B),
    ),
    "two of many missing": Row(
        {"model-4-of-5.safetensors": A, "model-1-of-5.safetensors": B, "model-3-of-5.safetensors": C},
        error="2 of 5 shards are missing: model-2-of-5.safetensors, model-5-of-5.safetensors",
    ),
    "diffusion, last missing": Row(
        {f"diffusion_pytorch_model-0000{n}-of-00003.safetensors": t for n, t in ((1, A), (2, B))},
        error="1 of 3 shards is missing: diffusion_pytorch_model-00003-of-00003.safetensors",
    ),
    "bin, middle missing": Row(
        {f"pytorch_model-0000{n}-of-00003.bin": t for n, t in ((1, A), (3, B))},
        error="1 of 3 shards is missing: pytorch_model-00002-of-00003.bin", way=("pytorch_model-00003-of-00003.bin", B),
    ),
    "bin, whole": Row({f"pytorch_model-0000{n}-of-00002.bin": t for n, t in ((1, A), (2, B))}, reads=BOTH),
    "counted from 0": Row({f"model-0000{n}-of-00002.safetensors": t for n, t in ((0, A), (1, B))}, reads=BOTH),
    "beyond the count": Row({S1: A, S2: B, S3: C}, error=f"holds {S3}: no such shard is among 2"),
    "without a number": Row(
        {S1: A, S2: B, "model-mtp-of-00002.safetensors": C}, error="holds model-mtp-of-00002.safetensors: no such shard"
    ),
    "one number twice": Row(
        {S1: A, S2: B, "model-1-of-2.safetensors": C},
        error=f"holds a shard twice: {S1}, model-1-of-2.safetensors",
    ),
    "several counts": Row(
        {S1: A, S2: B, "model-00001-of-00003.safetensors": C}, way=("model-00001-of-00003.safetensors", C),
        error=f"several checkpoints, and no index: {S1} and 1 more of that name, model-00001-of-00003.safetensors",
    ),
    "several prefixes": Row({S1: A, S2: B, "other-00001-of-00001.safetensors": C}, error="several checkpoints"),
    "shards and a whole": Row(
        {S1: A, S2: B, "model.safetensors": C}, error="several checkpoints", way=("model.safetensors", C)
    ),
    "shards and the makers' own": Row({S1: A, S2: B, "consolidated.safetensors": C}, None, BOTH, "consolidated"),
    "numbered without a count": Row({"consolidated.00.pth": A, "consolidated.01.pth": B}, reads=BOTH),
    "numbered with a gap": Row({"part-1.pth": A, "part-3.pth": B}, error="several checkpoints", way=("part-3.pth", B)),
    "another name": Row({"flux1-dev.safetensors": A}, reads=A),
    "two others": Row(
        {"flux1-dev.safetensors": A, "ae.safetensors": B}, way=("flux1-dev.safetensors", A),
        error="several checkpoints, and no index: ae.safetensors, flux1-dev.safetensors",
    ),
    "a model and another": Row({"pytorch_model.bin": A, "lora.bin": B}, error="several checkpoints"),
    # Variants and other formats of the same model
    "variants": Row(
        {"diffusion_pytorch_model.safetensors": A, "diffusion_pytorch_model.fp16.safetensors": B}, None, A,
        "diffusion_pytorch_model.fp16.safetensors",
    ),
    "non ema": Row(
        {"diffusion_pytorch_model.safetensors": A, "diffusion_pytorch_model.non_ema.safetensors": B}, None, A,
        "diffusion_pytorch_model.non_ema.safetensors",
    ),
    "variants in shards": Row(
        {S1: A, S2: B, "model.fp16-00001-of-00001.safetensors": C}, None, BOTH, "model.fp16-00001-of-00001.safetensors"
    ),
    "variants in shards, named at the end": Row(
        {S1: A, S2: B, "model-00001-of-00001.fp16.safetensors": C}, None, BOTH, "model-00001-of-00001.fp16.safetensors"
    ),
    "one variant alone": Row({"model.fp16.safetensors": A}, reads=A),
    "two variants alone": Row({"model.fp16.safetensors": A, "model.ema.safetensors": B}, error="several checkpoints"),
    "a bin, too": Row({"model.safetensors": A, "pytorch_model.bin": {"a": 4}}, None, A, "pytorch_model.bin"),
    # What trainers leave, and what is hidden, is no part of it.
    "a trainer's": Row({"model.safetensors": A, "optimizer.pt": B, "training_args.bin": B}, reads=A),
    "hidden": Row({"model.safetensors": A}, reads=A, others={"._model.safetensors": "of another system"}),
    # Models and adapters
    "adapter beside a model": Row(
        {"model.safetensors": A, "adapter_model.safetensors": ADAPTER}, others={"adapter_config.json": '{"r": 1}'},
        error="holds an adapter, adapter_model.safetensors, and other weights: model.safetensors",
        way=("model.safetensors", A),
    ),
    "adapter beside shards": Row(
        {S1: A, S2: B, "adapter_model.safetensors": ADAPTER}, BY_INDEX, others={"adapter_config.json": '{"r": 1}'},
        error=f"and other weights: {S1}, {S2}", way=(INDEX, BOTH),
    ),
    "adapter beside a model in another format": Row(
        {"pytorch_model.bin": A, "adapter_model.bin": ADAPTER}, others={"adapter_config.json": '{"r": 1}'},
        error="holds an adapter, adapter_model.bin, and other weights: pytorch_model.bin", way=("pytorch_model.bin", A),
    ),
    "adapter in both formats": Row(
        {"adapter_model.safetensors": ADAPTER, "adapter_model.bin": {"x": 1.0}, "optimizer.pt": B}, None, ADAPTER,
        "adapter_model.bin", others={"adapter_config.json": '{"r": 1}'},
    ),
    "adapters in folders": Row(
        {"default/adapter_model.safetensors": ADAPTER, "other/adapter_model.safetensors": ADAPTER},
        error="holds no checkpoint at its top", way=("other", ADAPTER),
    ),
    "adapters in folders and one": Row(
        {"adapter_model.safetensors": ADAPTER, "other/adapter_model.safetensors": A}, None, ADAPTER, "other",
        others={"adapter_config.json": '{"r": 1}', "other/adapter_config.json": '{"r": 1}'},
    ),
    "pipeline": Row(
        {"unet/diffusion_pytorch_model.safetensors": A, "vae/diffusion_pytorch_model.safetensors": B},
        error="holds no checkpoint at its top", way=("vae", B), others={"model_index.json": "{}"},
    ),
}  # fmt: skip


def values(path: Path | str) -> dict[str, float]:
    checkpoint = bs.open(str(path))
    return {name: float(checkpoint[name][0]) for name in checkpoint}


@pytest.mark.parametrize("name", ROWS)
def test_a_folder_is_read_as_a_whole_or_refused(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    place = folder(tmp_path / "in", row.files, row.weight_map, row.others)
    if row.reads is not None:
        assert values(place) == row.reads
        notes = [str(note) for note in bs.open(str(place)).notes]
        assert [row.ignored in note and note.count("not read") for note in notes] == ([1] if row.ignored else [])
        return
    with pytest.raises(StoreError, match=re.escape(row.error)):
        bs.open(str(place))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.way])
def test_the_way_out_that_an_error_names_works(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    place = folder(tmp_path / "in", row.files, row.weight_map, row.others)
    assert row.way is not None
    path, reads = row.way
    with pytest.raises(StoreError) as caught:
        bs.open(str(place))
    assert str(place / path) in str(caught.value).split("\n", 1)[1]
    assert values(place / path) == reads


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.ignored and row.ignored in row.files])
def test_a_file_that_is_not_read_is_read_when_it_is_named(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    place = folder(tmp_path / "in", row.files, row.weight_map, row.others)
    (note,) = bs.open(str(place)).notes
    assert (note.code, note.severity) == ("input-ignored", "note")
    assert str(place / row.ignored) in note.hint
    assert values(place / row.ignored) == row.files[row.ignored]


@pytest.mark.parametrize("weight_map", [None, BY_INDEX], ids=["without an index", "with an index"])
def test_one_shard_that_is_named_alone_is_read_with_a_note_that_names_the_whole(
    tmp_path: Path, weight_map: dict[str, str] | None
) -> None:
    place = folder(tmp_path / "in", {S1: A, S2: B}, weight_map)
    (note,) = bs.open(str(place / S1)).notes
    assert note.message == f"{place / S1}: is one of 2 shards, by its name; the others are not read"
    (whole,) = re.findall("name '(.*)'", note.hint)
    assert (values(place / S1), values(Path(whole))) == (A, BOTH)
    assert not bs.open(whole).notes


@pytest.mark.parametrize("others", [[], [S2, "stray.safetensors"]], ids=["alone in its folder", "among others"])
def test_a_lone_shard_whose_folder_is_not_the_checkpoint_asks_for_such_a_folder(
    tmp_path: Path, others: list[str]
) -> None:
    place = folder(tmp_path / "in", {S1: A, **dict.fromkeys(others, B)})
    (note,) = bs.open(str(place / S1)).notes
    assert note.hint == "To read the whole checkpoint, name a folder with all 2 shards of it alone."
    assert values(folder(tmp_path / "whole", {S1: A, S2: B})) == BOTH


def test_the_only_shard_of_a_checkpoint_is_all_of_it(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"model-00001-of-00001.safetensors": A})
    assert not bs.open(str(place / "model-00001-of-00001.safetensors")).notes


def test_a_tensor_that_a_named_index_omits_is_noted(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {S1: {**A, "x": 3}, S2: {**B, "a": 7}}, BY_INDEX)
    (note,) = bs.open(str(place / INDEX)).notes
    assert note.message == f"{place / INDEX} does not list tensors that lie in its shards; they are not read: x, a"


def test_an_index_of_torch_files_counts_like_one_of_safetensors(tmp_path: Path) -> None:
    one, two = (f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2))
    weight_map = json.dumps({"weight_map": {"a": one, "b": two}})
    files = {one: A, two: B, "model_stray.bin": C}
    place = folder(tmp_path / "in", files, others={"pytorch_model.bin.index.json": weight_map})
    assert values(place) == BOTH
    assert [note.code for note in bs.open(str(place)).notes] == ["input-ignored"]
    torch.save({"a": torch.ones(2), "x": torch.ones(2)}, place / one)
    with pytest.raises(StoreError, match=r"pytorch_model.bin.index.json: tensor 'x': is in .*does not list it"):
        bs.open(str(place))
    assert list(bs.open(str(place / "pytorch_model.bin.index.json"))) == ["a", "b"]


def test_of_two_indexes_the_one_without_the_mark_of_a_variant_counts(tmp_path: Path) -> None:
    half = "model.fp16-00001-of-00001.safetensors"
    variant = json.dumps({"weight_map": {"c": half}})
    for name in ("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"):
        place = folder(tmp_path / name, {S1: A, S2: B, half: C}, BY_INDEX, {name: variant})
        assert values(place) == BOTH
        assert values(place / name) == C


def test_two_indexes_of_two_models_are_not_clear(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {S1: A, S2: B}, BY_INDEX)
    (place / "other.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": S1}}))
    with pytest.raises(StoreError, match=rf"holds several indexes: {INDEX}, other.safetensors.index.json\n.*Name"):
        bs.open(str(place))


def test_notes_stand_where_the_plan_names_the_input_and_are_printed_once_by_run(tmp_path: Path) -> None:
    folder(tmp_path / "in", {S1: A, S2: B, "model.safetensors": C}, BY_INDEX)
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"inputs:\n  - base::{tmp_path}/in\noutput: {tmp_path}/out.safetensors\n")
    loaded = bs.load(str(plan))
    (note,) = bs.check(loaded)
    assert (note.code, note.severity, note.span and note.span.line) == ("input-ignored", "note", 2)
    assert loaded.run(durable=False).notes == (note,)
    step = {"load": {"path": f"{tmp_path}/in", "alias": "more"}}
    (note,) = bs.check(bs.load({"inputs": [f"base::{tmp_path}/out.safetensors"], "transforms": [step]}))
    assert note.message.startswith(f"load.path: {tmp_path}/in: weight files")


@pytest.mark.parametrize(
    ("name", "stem", "variant", "number", "total"),
    [
        ("model.safetensors", "model", "", None, None),
        ("model-00002-of-00010.safetensors", "model", "", 2, 10),
        ("model.fp16-00002-of-00010.bin", "model", "fp16", 2, 10),
        ("model-00002-of-00010.bf16.bin", "model", "bf16", 2, 10),
        ("a-b_c.v2-00002-of-00010.pt", "a-b_c.v2", "", 2, 10),
        ("model-mtp-of-00010.safetensors", "model", "", None, 10),
        ("model-00002-of-00010-extra.safetensors", "model", "", None, 10),
        ("unet.non_ema.safetensors", "unet", "non_ema", None, None),
        ("house-of-cards.safetensors", "house-of-cards", "", None, None),
    ],
)
def test_what_a_name_tells(name: str, stem: str, variant: str, number: int | None, total: int | None) -> None:
    file = read_name(name)
    assert (file.stem, file.variant, file.number, file.total) == (stem, variant, number, total)
