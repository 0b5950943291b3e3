"""`vocab: {tokenizer: ...}`: tokens keep their rows by their text, and the files of the new tokenizer follow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, Refusal
from brainsurgery_jax.vocabulary import find_words, read_vocabulary
from tests.structure.judged import assert_same, edit, load, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

OLD = ["<pad>", "<s>", "</s>", "Ġthe", "Ġcat", "s", "é", "Ċ", *(f"Ġold{n}" for n in range(80))]
NEW = ["Ġcat", "Ġdog", "s", "</s>", "Ġthe", "<s>", "<pad>"]


def write_tokenizer(folder: Path, words: Sequence[str], special: Sequence[str] = ("<pad>", "<s>", "</s>")) -> None:
    """The files of a tokenizer whose model has a letter for each byte; special words are added ones."""
    folder.mkdir(exist_ok=True)
    data = {
        "added_tokens": [{"id": words.index(text), "content": text, "special": True} for text in special],
        "normalizer": None, "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {text: n for n, text in enumerate(words)}, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": len(words)}))


def write_holder(folder: Path, words: Sequence[str]) -> Path:
    """A checkpoint of nothing but a tokenizer."""
    write_tokenizer(folder, words)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": words.index("</s>")}))
    return folder


def two_models(tmp_path: Path, name: str = "llama") -> tuple[Any, Path]:
    """A model with 91 rows and a tokenizer, and the folder of another one with a tokenizer of its own."""
    model = make(name, tmp_path / "whole")
    write_tokenizer(tmp_path / "whole", OLD)
    (tmp_path / "whole/merges.txt").write_text("#version: 0.2\n")
    return model, write_holder(tmp_path / "other", NEW)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gemma2", "mixtral", "gpt_neox"])
def test_tokens_of_the_same_text_keep_their_rows(name: str, tmp_path: Path) -> None:
    model, other = two_models(tmp_path, name)
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"tokenizer": "other", "alias": "model"}}, other=other)
    found = load(tmp_path / "out")
    rows, old = found.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(rows[[0, 2, 3, 4, 5, 6]], old[[4, 5, 2, 3, 1, 0]])
    assert_same(rows[1], old.mean(0))
    assert found.config.vocab_size == len(NEW)
    tokens = torch.tensor([[0, 4, 5, 2]])
    before = torch.tensor([[4, 3, 1, 5]])
    with torch.no_grad():
        made, wanted = found(input_ids=tokens).logits, model(input_ids=before).logits
    assert_same(made[..., [0, 2, 3, 4, 5, 6]], wanted[..., [4, 5, 2, 3, 1, 0]])


def test_files_of_the_new_tokenizer_replace_all_of_the_old_one(tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    (tmp_path / "whole/README.md").write_text("about the model")
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"tokenizer": "other", "alias": "model"}}, other=other)
    out = tmp_path / "out"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (other / name).read_bytes()
    assert not (out / "merges.txt").exists()
    assert (out / "README.md").read_text() == "about the model"


def test_what_steps_change_in_settings_goes_with_the_old_tokenizer_and_stays_with_the_new(tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    steps = [
        {"config": {"alias": "model", "file": "tokenizer_config.json", "patch": {"before": 1}}},
        {"vocab": {"tokenizer": "other", "alias": "model"}},
        {"config": {"alias": "model", "file": "tokenizer_config.json", "patch": {"after": 2}}},
    ]
    edit(tmp_path / "whole", tmp_path / "out", *steps, other=other)
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings == {"model_max_length": len(NEW), "after": 2}


def test_special_words_follow_the_new_numbers(tmp_path: Path) -> None:
    """End of text is what the other config says, the others are found by their text."""
    _, other = two_models(tmp_path)
    generation = {"eos_token_id": [2], "bos_token_id": 1, "max_length": 20}
    (tmp_path / "whole/generation_config.json").write_text(json.dumps(generation))
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"tokenizer": "other", "alias": "model"}}, other=other)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (5, 3, 6)
    after = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert after == {"eos_token_id": [3], "bos_token_id": 5, "max_length": 20}


@pytest.mark.parametrize("said", [{"pad_token_id": None}, {}])
def test_special_words_that_a_model_had_not_are_those_of_the_other_one(said: Mapping[str, Any], tmp_path: Path) -> None:
    """transformers writes null into config.json, and leaves the key out of generation_config.json."""
    _, other = two_models(tmp_path)
    theirs = {"pad_token_id": 6, "eos_token_id": 3, "bos_token_id": None}
    for name in ("config.json", "generation_config.json"):
        data = json.loads((tmp_path / "whole" / name).read_text())
        own = {**{key: value for key, value in data.items() if key != "pad_token_id"}, **said}
        (tmp_path / "whole" / name).write_text(json.dumps(own))
        (other / name).write_text(json.dumps({"model_type": "llama", **theirs}))
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"tokenizer": "other", "alias": "model"}}, other=other)
    for name in ("config.json", "generation_config.json"):
        after = json.loads((tmp_path / "out" / name).read_text())
        assert {key: after[key] for key in theirs} == theirs


def test_a_special_word_that_is_gone_from_generation_is_what_the_other_config_says(tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    write_tokenizer(other, [word for word in NEW if word != "<s>"], ("<pad>", "</s>"))
    (other / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 3, "bos_token_id": None}))
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    notes = edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"tokenizer": "other", "alias": "model"}}, other=other)
    found = load(tmp_path / "out").generation_config
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, 3, 5)
    assert not any("bos_token_id" in note.message for note in notes)


def test_an_order_renumbers_the_words_that_generation_knows(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    (tmp_path / "whole/generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"order": [2, 1, 0, *range(3, 91)]}})
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"eos_token_id": 0}


@pytest.mark.parametrize("rows", ["zero", "given"])
def test_new_words_take_zeros_or_given_rows(rows: str, tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    given = {name: torch.randn(8, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(given, tmp_path / "rows.safetensors")
    more = {"other": other, "given": tmp_path / "rows.safetensors"}
    asked = {"tokenizer": "other", "alias": "model", "rows": rows, "multiple_of": 8}
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": asked}, **more)
    table = load(tmp_path / "out").lm_head.weight
    wanted = torch.zeros(2, 32) if rows == "zero" else given["lm_head.weight"][[1, 7]]
    assert torch.equal(table[[1, 7]], wanted)


@pytest.mark.parametrize("asked", [
    {"tokenizer": "other"}, {"tokenizer": "other", "rows": "zero", "size": 9}, {"multiple_of": 32}, {"size": 80},
    {"order": [5, 3, 1, 88]},
])  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_logits_of_the_words_that_stay_are_proven(name: str, asked: Mapping[str, Any], tmp_path: Path) -> None:
    _, other = two_models(tmp_path, name)
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {**asked, "alias": "model", "prove": True}}, other=other)
    load(tmp_path / "out")


def test_a_save_step_writes_the_tokenizer_that_the_model_has_by_then(tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    plan = bs.load({
        "inputs": [f"model::{tmp_path / 'whole'}", f"other::{other}"],
        "transforms": [
            {"save": {"path": f"{tmp_path / 'first'}/", "alias": "model"}},
            {"vocab": {"tokenizer": "other", "alias": "model"}},
            {"prefixes": {"mode": "add", "alias": "copied"}},
            {"copy": {"from": "model::.*", "to": r"copied::\g<0>"}},
        ],
        "output": {"path": f"{tmp_path / 'last'}/", "alias": "copied"},
    })  # fmt: skip
    plan.run(durable=False)
    for folder, kept in (("first", tmp_path / "whole"), ("last", other)):
        assert (tmp_path / folder / "tokenizer.json").read_bytes() == (kept / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("asked", "why"), [
    ({"tokenizer": "other", "order": [0]}, "give either order or tokenizer"),
    ({"tokenizer": "other", "size": 3}, "tokenizer.json of 'other' has 7 words, more than 3"),
    ({"tokenizer": "model"}, "beside the checkpoint of 'model' lies none of tokenizer.json"),
    ({"tokenizer": "strange"}, "'model' and 'strange' have no word in common"),
    ({"tokenizer": "broken"}, "tokenizer.json of 'broken' holds no words that are understood"),
    ({"tokenizer": "other", "rows": "other"}, "'lm_head.weight' does not exist in 'other'"),
])  # fmt: skip
def test_what_no_tokenizer_gives_is_refused(asked: Mapping[str, Any], why: str, tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    for name, words in (("strange", ["x", "y"]), ("broken", [])):
        write_tokenizer(tmp_path / name, words, ())
        save_file({"x": torch.zeros(1)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "broken/tokenizer.json").write_text('{"model": {}}')
    if asked["tokenizer"] == "model":
        (tmp_path / "whole/tokenizer.json").unlink()
    more = {"other": other, "strange": tmp_path / "strange", "broken": tmp_path / "broken"}
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", {"vocab": {**asked, "alias": "model"}}, **more)


# --- Words of every kind of file --------------------------------------------------------------------------------------


def _message(field: int, value: bytes | int) -> bytes:
    """A field of protobuf; numbers and sizes below 128."""
    return bytes([field << 3, value]) if isinstance(value, int) else bytes([field << 3 | 2, len(value)]) + value


def _pieces(*pieces: tuple[str, int]) -> bytes:
    """A model of SentencePiece: texts with their types, and a field that says something else."""
    made = (_message(1, text.encode()) + bytes([2 << 3 | 5]) + b"\0\0\0\0" + _message(3, kind) for text, kind in pieces)
    return b"".join(_message(1, piece) for piece in made) + _message(2, _message(3, 7))


FAST = {"model": {"type": "BPE", "vocab": {"Ġthe": 0, "Ã©": 1, "Ċ": 2}}, "decoder": {"type": "ByteLevel"}}
METASPACE = {"model": {"type": "Unigram", "vocab": [["▁the", 0.0], ["é", 0.0], ["<0x0A>", 0.0]]},
             "decoder": {"type": "Metaspace", "replacement": "▁"}}  # fmt: skip
SPELT: Mapping[str, Mapping[str, bytes]] = {
    "bytes": {"tokenizer.json": json.dumps(FAST).encode()},
    "unigram": {"tokenizer.json": json.dumps(METASPACE).encode()},
    "pieces": {"tokenizer.model": _pieces(("▁the", 1), ("é", 1), ("<0x0A>", 6))},
    "wordpiece": {"vocab.txt": "the\n##é\n##\\n\n".replace("\\n", "\x0b").encode()},
    "table": {"vocab.json": json.dumps({"Ġthe": 0, "Ã©": 1, "Ċ": 2}).encode()},
}  # fmt: skip


@pytest.mark.parametrize("right", SPELT)
@pytest.mark.parametrize("left", SPELT)
def test_words_are_the_same_however_they_are_spelt(left: str, right: str) -> None:
    old, new = (read_vocabulary(SPELT[name].get, name, "") for name in (left, right))
    found = find_words(new, old, 3)
    assert found[:2] == [0, 1]
    assert found[2] == (2 if (left == "wordpiece") == (right == "wordpiece") else None)


def test_added_words_are_read_from_the_files_that_list_them() -> None:
    files = {
        "vocab.json": b'{"a": 0}', "added_tokens.json": b'{"<x>": 1}',
        "tokenizer_config.json": b'{"added_tokens_decoder": {"2": {"content": "<y>"}}}',
    }  # fmt: skip
    found = read_vocabulary(files.get, "model", "")
    assert (found.words, found.added, found.size) == ({0: "a"}, {1: "<x>", 2: "<y>"}, 3)


def test_an_added_word_is_none_that_is_only_spelt_alike() -> None:
    """A byte of SentencePiece is the newline of GPT-2, and `<s>` is a word that was added."""
    old = read_vocabulary({"tokenizer.model": _pieces(("<s>", 3), ("<0x0A>", 6), ("x", 1))}.get, "old", "")
    new = read_vocabulary({"vocab.json": b'{"\\u010a": 0, "<s>": 1, "\\u0120x": 2}'}.get, "new", "")
    assert find_words(new, old, 3) == [1, 0, None]


def test_rows_that_a_model_has_not_are_not_taken() -> None:
    old = read_vocabulary({"vocab.json": b'{"a": 0, "b": 1}'}.get, "old", "")
    assert find_words(old, old, 1) == [0, None]


T5_PIECES = ["<pad>", "</s>", "<unk>", "▁dog", "▁the", "▁house", "s"]
SPIECE = _pieces(*((text, {0: 3, 1: 3, 2: 2}.get(n, 1)) for n, text in enumerate(T5_PIECES)))


@pytest.mark.parametrize("settings", [{"extra_ids": 5}, {}, {"extra_ids": 0}])
@pytest.mark.parametrize("named", [False, True])
def test_a_t5_has_its_extra_words_behind_the_pieces(settings: Mapping[str, Any], named: bool) -> None:
    """The tokenizer of `transformers`, made of the pieces of the file, is the oracle."""
    from transformers import T5Tokenizer
    from transformers.convert_slow_tokenizer import T5Converter

    extra = {"additional_special_tokens": [f"<extra_id_{n}>" for n in range(settings.get("extra_ids", 100))]}
    given = {**settings, **(extra if named else {})}
    pieces = [(text, -float(n)) for n, text in enumerate(T5_PIECES)]
    wanted = T5Tokenizer(**T5Converter.convert_from_spm(vocab=pieces, **given)).get_vocab()
    files = {
        "spiece.model": SPIECE,
        "tokenizer_config.json": json.dumps({"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", **given}).encode(),
    }
    found = read_vocabulary(files.get, "model", "")
    assert {text: n for held in (found.words, found.added) for n, text in held.items()} == wanted


@pytest.mark.parametrize(("settings", "why"), [
    ({"tokenizer_class": "T5Tokenizer", "extra_ids": 5, "additional_special_tokens": ["<sep>"]}, "'<sep>' of 'model'"),
    ({"tokenizer_class": "PegasusTokenizer", "mask_token": {"content": "<mask_2>"}}, "'<mask_2>' of 'model' have no"),
    ({"extra_ids": 5}, "spiece.model of 'model' may be that of a T5"),
])  # fmt: skip
def test_words_whose_numbers_only_a_class_knows_are_refused(settings: Mapping[str, Any], why: str) -> None:
    files = {"spiece.model": SPIECE, "tokenizer_config.json": json.dumps(settings).encode()}
    with pytest.raises(Refusal, match=re.escape(why)) as told:
        read_vocabulary(files.get, "model", "")
    assert told.value.hint == "Save the tokenizer as tokenizer.json."
    files["tokenizer.json"] = json.dumps(METASPACE).encode()
    assert read_vocabulary(files.get, "model", "").size == 3
    files = {"spiece.model": SPIECE, "tokenizer_config.json": b'{"tokenizer_class": "AlbertTokenizer"}'}
    assert read_vocabulary(files.get, "model", "").size == len(T5_PIECES)
