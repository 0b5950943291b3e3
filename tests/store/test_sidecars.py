"""Side files: the small files that travel with the weights, and those that do not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store import sidecars
from brainsurgery_jax.store.io.local import LocalPlace
from brainsurgery_jax.store.sidecars import (
    DOCUMENTS,
    SIDE_FILES,
    copy_side_files,
    find_side_files,
    is_side_name,
    sidecar_folder,
)
from tests.checkpoints import write

ROOT = Path(__file__).parents[2]
TRAVEL = [
    # Llama, Mistral, Gemma
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "params.json",
    "tokenizer.model.v3", "tekken.json",
    # GPT-2, BERT, Qwen, T5, XLM-R, Marian, Whisper, PhoBERT, LUKE
    "merges.txt", "vocab.json", "vocab.txt", "vocab.bpe", "encoder.json", "qwen.tiktoken", "spiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "normalizer.json", "bpe.codes", "entity_vocab.json",
    # processors, sentence-transformers, diffusers, OpenCLIP, quantized models
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "model_index.json", "scheduler_config.json",
    "open_clip_config.json", "quantize_config.json", "hf_quant_config.json",
    # documents
    "LICENSE", "LICENSE.txt", "LICENCE.md", "NOTICE", "README.md", "COPYING", "USE_POLICY.md",
]  # fmt: skip
STAY = [
    "token.txt", "notes.txt", "train.py", "modeling_custom.py", "train_args.json", "trainer_state.json",
    "wandb_config.json", "log.txt", "plot.png", "results.csv", "secrets.yaml", "id_rsa", "plan.yaml", "README_token",
    "mergekit_config.yml", "optimizer.pkl", "vocab.pkl", "vocab.bak", "license.key", "README.env",
]  # fmt: skip
NEITHER = [
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "a.pt",
    "optimizer.PTH", "training_args.bin", "x.ckpt", "tf_model.h5", "flax_model.msgpack", "m.onnx", "m.gguf", "w.npz",
    "vocab.npy", ".gitattributes", ".env", "brainsurgery.lock.json",
]  # fmt: skip


def fill(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def put(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def model(folder: Path, *names: str) -> Path:
    """A folder of a model with side files of these names."""
    fill(folder, ["config.json", *names]).joinpath("config.json").write_text("{}")
    write(folder / "model.safetensors", {"w": np.ones(3, np.float32)})
    return folder


# --- Names -----------------------------------------------------------------------------------------------------------


def test_files_that_model_repositories_use_travel_and_nothing_else_does(tmp_path: Path) -> None:
    found = find_side_files(fill(tmp_path / "in", TRAVEL + STAY + NEITHER))
    assert found.copied == tuple(sorted(TRAVEL))
    assert found.left == tuple(sorted(STAY))


def test_the_page_on_formats_lists_every_name_that_travels() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith("Side files")]
    listed = set(re.findall(r"`([^`\s]+)`", text))
    assert {pattern for patterns in SIDE_FILES.values() for pattern in patterns} <= listed
    assert {word.upper() for word in DOCUMENTS} <= listed


@pytest.mark.parametrize(
    "name",
    [
        "vocab.safetensors",
        ".tokenizer.json",
        "config.json.bak",
        "myconfig.json",
        "vocab.pkl",
        "vocab.bak",
        "license.key",
        "README.env",
        "notice.pem",
        "chat_template.py",
        "flax_model.msgpack",
        "token.txt",
        "optimizer.pkl",
    ],
)
def test_a_name_that_is_like_one_of_a_side_file_is_none(name: str) -> None:
    assert not is_side_name(name)


def test_the_config_of_an_adapter_travels_only_with_an_adapter(tmp_path: Path) -> None:
    adapter = fill(tmp_path / "adapter", ["adapter_config.json", "adapter_model.safetensors"])
    other = fill(tmp_path / "model", ["adapter_config.json", "model.safetensors"])
    assert find_side_files(adapter).copied == ("adapter_config.json",)
    assert find_side_files(other)[:3] == (str(other), (), ("adapter_config.json",))


def test_large_files_stay_and_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "MAX_SIDECAR", 3)
    source = fill(tmp_path / "in", [])
    (source / "merges.txt").write_text("abc")
    (source / "vocab.txt").write_text("abcd")
    assert find_side_files(source)[:3] == (str(source), ("merges.txt",), ("vocab.txt",))


def test_links_to_private_files_stay_and_links_inside_travel(tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("secret")
    source = fill(tmp_path / "in", ["vocab.txt"])
    (source / "merges.txt").symlink_to(tmp_path / "id_rsa")
    (source / "tokenizer.json").symlink_to("vocab.txt")
    (source / "config.json").symlink_to("nowhere")
    assert find_side_files(source)[:3] == (str(source), ("tokenizer.json", "vocab.txt"), ())


# --- Code that a config names -----------------------------------------------------------------------------------------


def test_code_travels_that_a_config_names_and_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    names = ["modeling_x.py", "configuration_x.py", "layers.py", "cache.py", "tokenization_x.py", "train.py", "util.py"]
    source = fill(tmp_path / "in", names)
    put(
        source, "config.json", {"auto_map": {"AutoModel": "modeling_x.XModel", "AutoConfig": "other/repo--far.XConfig"}}
    )
    put(source, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}})
    put(
        source,
        "modeling_x.py",
        "import torch\nfrom .configuration_x import XConfig\nif True:\n    from . import layers\n",
    )
    put(source, "layers.py", "from .cache import Cache\nfrom .modeling_x import XModel\nimport util\n")
    found = find_side_files(source)
    assert set(found.copied) - {"config.json", "tokenizer_config.json"} == {
        "modeling_x.py", "configuration_x.py", "layers.py", "cache.py", "tokenization_x.py"
    }  # fmt: skip
    assert found.left == ("train.py", "util.py")


def test_code_travels_that_the_modules_of_sentence_transformers_name(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", ["custom_st.py", "other.py"])
    put(source, "modules.json", [{"path": "", "type": "custom_st.Transformer"}])
    assert find_side_files(source)[:3] == (str(source), ("custom_st.py", "modules.json"), ("other.py",))


@pytest.mark.parametrize(
    "content", ["{not json", "[" * 100_000, "[1]", '{"auto_map": 3}', '{"auto_map": {"A": "../x.Y"}}']
)
def test_a_config_that_cannot_be_understood_names_nothing(tmp_path: Path, content: str) -> None:
    source = fill(tmp_path / "in", ["x.py"])
    (tmp_path / "x.py").write_text("outside")
    put(source, "config.json", content)
    assert find_side_files(source)[:3] == (str(source), ("config.json",), ("x.py",))


# --- Folders that side files name -------------------------------------------------------------------------------------


def test_folders_that_side_files_name_travel_with_what_belongs_there(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", [])
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../out"}, {"path": "link"}, {}, 3]
    put(source, "modules.json", modules)
    for name in ("1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/config.json", "2_Dense/notes.txt",
                 "runs/config.json", "additional_chat_templates/tool.jinja"):  # fmt: skip
        put(source, name, "x")
    fill(tmp_path / "out", ["config.json"])
    (source / "link").symlink_to("../out")
    found = find_side_files(source)
    assert found.copied == (
        "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
        "additional_chat_templates/tool.jinja",
    )  # fmt: skip
    assert found.left == ("2_Dense/notes.txt",)


def test_the_parts_of_a_pipeline_travel_where_they_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "MAX_SIDECAR", 100)
    source = fill(tmp_path / "in", [])
    put(source, "model_index.json", {"_class_name": "P", "scheduler": ["d", "S"], "unet": ["d", "U"]})
    put(source, "scheduler/scheduler_config.json", "{}")
    put(source, "unet/diffusion_pytorch_model.safetensors", "x" * 101)
    found = find_side_files(source)
    assert found.copied == ("model_index.json", "scheduler/scheduler_config.json")
    assert found.left == ("unet/diffusion_pytorch_model.safetensors",)


# --- Copying, and what is said of it ----------------------------------------------------------------------------------


def test_what_is_in_the_output_already_is_kept(tmp_path: Path) -> None:
    source, target = fill(tmp_path / "in", ["config.json", "vocab.txt"]), fill(tmp_path / "out", [])
    put(source, "modules.json", [{"path": "1_Pooling"}])
    put(source, "1_Pooling/config.json", "pooling")
    (target / "config.json").write_text("patched")
    copy_side_files(find_side_files(source), LocalPlace(str(target)))
    assert (target / "config.json").read_text() == "patched"
    assert sorted(os.listdir(target)) == ["1_Pooling", "config.json", "modules.json", "vocab.txt"]
    assert (target / "1_Pooling" / "config.json").read_text() == "pooling"


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none: could not list the folder: No such file"):
        find_side_files(tmp_path / "none")


def test_a_single_file_brings_its_neighbours_only_out_of_the_folder_of_a_model(tmp_path: Path) -> None:
    model = fill(tmp_path / "model", ["config.json", "model.safetensors"])
    other = fill(tmp_path / "downloads", ["README.md", "model.safetensors"])
    assert sidecar_folder(model / "model.safetensors") == model
    assert sidecar_folder(model) == model
    assert sidecar_folder(other / "model.safetensors") is None


@pytest.mark.parametrize("named", ["model/model.safetensors", "model"])
def test_a_private_file_beside_a_model_stays_there_and_a_note_says_so_once(here: Path, named: str) -> None:
    model(here / "model", "token.txt", "tokenizer.json")
    plan = bs.load({"inputs": [named], "outputs": ["one/", "two/"]})
    report = plan.run()
    assert sorted(os.listdir(here / "one")) == [
        "brainsurgery.lock.json", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    (note,) = report.notes
    assert note.code == "sidecars-left"
    assert note.message == "output: a file of model is not copied: token.txt"


def test_an_output_without_side_files_has_nothing_to_say_of_them(here: Path) -> None:
    model(here / "model", "token.txt")
    plan = bs.load({"inputs": ["model"], "outputs": [{"path": "one/", "sidecars": False}, "two.safetensors"]})
    assert plan.run().notes == ()
    assert sorted(os.listdir(here / "one")) == ["brainsurgery.lock.json", "model.safetensors"]


def test_what_was_copied_is_told_at_the_end_of_a_run_and_by_explain(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from brainsurgery_jax.cli import plans

    model(here / "few", "tokenizer.json")
    model(here / "many", "vocab.json", "merges.txt", "tokenizer.json", "README.md", "LICENSE")
    for name in ("few", "many"):
        (here / f"{name}.yaml").write_text(f"inputs: [{name}]\noutput: out-{name}/\n")
        plans.run([f"{name}.yaml"], plans.Choices())
        plans.explain([f"{name}.yaml"], overwrite=False, shard_size="5GB", json=False)
    plans.explain(["many.yaml"], overwrite=False, shard_size="5GB", json=True)
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "wrote out-few/: 1 tensor, 12 B, with config.json and tokenizer.json",
        "wrote out-many/: 1 tensor, 12 B, with 6 side files: "
        "LICENSE, README.md, config.json, merges.txt, tokenizer.json, vocab.json",
    ]
    assert "    with config.json and tokenizer.json\n" in out
    (written,) = json.loads(out[out.index("{\n") :])["outputs"]
    assert written["side_files"] == [
        "LICENSE",
        "README.md",
        "config.json",
        "merges.txt",
        "tokenizer.json",
        "vocab.json",
    ]


def test_a_sentence_transformer_comes_out_with_its_pooling(here: Path) -> None:
    folder = model(here / "st")
    put(folder, "modules.json", [{"path": "", "type": "t.Transformer"}, {"path": "1_Pooling", "type": "t.Pooling"}])
    put(folder, "1_Pooling/config.json", {"word_embedding_dimension": 3})
    bs.load({"inputs": ["st"], "output": "out/"}).run()
    assert json.loads((here / "out" / "1_Pooling" / "config.json").read_text()) == {"word_embedding_dimension": 3}
