"""Sidecars: the small files that travel with the weights, and those that do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store import sidecars
from brainsurgery_jax.store.sidecars import copy_sidecars, find_sidecars, sidecar_folder

TRAVEL = [
    "LICENSE", "LICENSE.txt", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
    "modeling_custom.py", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json",
]  # fmt: skip
STAY = [
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "a.pt",
    "optimizer.PTH", "training_args.bin", "x.ckpt", "tf_model.h5", "flax_model.msgpack", "m.onnx", "m.gguf", "w.npz",
    "w.npy", ".gitattributes", "brainsurgery.lock.json",
]  # fmt: skip


def fill(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_configuration_tokenizer_code_and_licence_travel_and_weights_do_not(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", TRAVEL + STAY)
    (source / "folder").mkdir()
    assert [path.name for path in find_sidecars(source)] == TRAVEL


def test_large_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "MAX_SIDECAR", 3)
    source = fill(tmp_path / "in", ["abc", "abcd"])
    assert [path.name for path in find_sidecars(source)] == ["abc"]


def test_links_to_private_files_stay_and_links_inside_travel(tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("secret")
    source = fill(tmp_path / "in", ["vocab.txt"])
    (source / "merges.txt").symlink_to(tmp_path / "id_rsa")
    (source / "alias.txt").symlink_to("vocab.txt")
    (source / "broken.txt").symlink_to("nowhere")
    assert [path.name for path in find_sidecars(source)] == ["alias.txt", "vocab.txt"]


def test_what_is_in_the_output_already_is_kept(tmp_path: Path) -> None:
    source, target = fill(tmp_path / "in", ["config.json", "vocab.txt"]), fill(tmp_path / "out", [])
    (target / "config.json").write_text("patched")
    assert copy_sidecars(source, target) == ["vocab.txt"]
    assert (target / "config.json").read_text() == "patched"
    assert sorted(os.listdir(target)) == ["config.json", "vocab.txt"]


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none: could not list the folder: No such file"):
        find_sidecars(tmp_path / "none")


def test_a_single_file_brings_its_neighbours_only_out_of_the_folder_of_a_model(tmp_path: Path) -> None:
    model = fill(tmp_path / "model", ["config.json", "model.safetensors"])
    other = fill(tmp_path / "downloads", ["README.md", "model.safetensors"])
    assert sidecar_folder(model / "model.safetensors") == model
    assert sidecar_folder(model) == model
    assert sidecar_folder(other / "model.safetensors") is None
