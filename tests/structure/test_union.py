"""`vocab: {models: [...], tokenizer: union}`: what is written, as `tokenizers` and `transformers` load it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.structure.union import unite
from brainsurgery_jax.vocabulary import added_numbers
from tests.structure.judged import load, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

PLAIN: Mapping[str, Any] = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
LETTERS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "BPE": {"pre_tokenizer": LETTERS, "decoder": LETTERS},
    "WordPiece": {"pre_tokenizer": {"type": "BertPreTokenizer"},
                  "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                                 "strip_accents": None, "lowercase": True}},
    "WordLevel": {"pre_tokenizer": {"type": "Whitespace"}},
    "Unigram": {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
}  # fmt: skip
MODELS: Mapping[str, Mapping[str, Any]] = {
    "BPE": {},
    "WordPiece": {"unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    "WordLevel": {"unk_token": "<unk>"}, "Unigram": {"unk_id": 0, "byte_fallback": False},
}  # fmt: skip


def tokenizer(kind: str, words: Sequence[str], added: Mapping[str, int], **marks: bool) -> dict[str, Any]:
    """The content of a tokenizer.json; added words with the numbers that it declares."""
    vocab = {word: n for n, word in enumerate(words)}
    listed = [[word, -float(n)] for word, n in vocab.items()] if kind == "Unigram" else vocab
    entries = [{"id": n, "content": word, "special": True, **PLAIN, **marks} for word, n in added.items()]
    merges = {"merges": [[*word] for word in words if len(word) == 2]} if kind == "BPE" else {}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": None,
        "post_processor": None, "decoder": None, **KINDS[kind],
        "model": {"type": kind, "vocab": listed, **MODELS[kind], **merges},
    }  # fmt: skip


def dump(data: object) -> bytes:
    return json.dumps(data).encode()


def load_words(content: bytes) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content.decode())


@pytest.mark.parametrize("kind", KINDS)
def test_added_words_have_the_numbers_that_loaders_give(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(40):
        words = ["<unk>", *draw.sample("abcdefgh", draw.randint(1, 6))]
        data = tokenizer(kind, words, {word: draw.randrange(20) for word in draw.sample("abcdxyz", draw.randint(0, 5))})
        if kind != "Unigram":  # which has no holes
            data["model"]["vocab"] = {
                word: n for word, n in zip(words, sorted(draw.sample(range(12), 7)), strict=False)
            }
        data["added_tokens"] += data["added_tokens"][:1]
        loaded = load_words(dump(data)).get_vocab()
        assert {each.word: each.loaded for each in added_numbers(data)} == {
            entry["content"]: loaded[entry["content"]] for entry in data["added_tokens"]
        }


FIRST = {
    "BPE": ["a", "b", "c", "ab"], "WordPiece": ["<unk>", "a", "b", "##b"], "WordLevel": ["<unk>", "a", "b", "aha"],
}  # fmt: skip
SECOND = {
    "BPE": ["b", "a", "d", "ba"], "WordPiece": ["##b", "b", "d", "<unk>"], "WordLevel": ["b", "d", "<unk>", "e"],
}  # fmt: skip


def held(kind: str, folder: Path) -> Mapping[str, Any]:
    """Two models whose added words follow those of their models, as in Llama 3 and Qwen; their tables."""
    own = {
        "a": tokenizer(kind, FIRST[kind], {"<|eot|>": 4, "<|start|>": 5}),
        "b": tokenizer(kind, SECOND[kind], {"<|start|>": 4, "<|x|>": 5, "<|y|>": 6}),
    }
    made = {}
    for seed, (alias, data) in enumerate(own.items()):
        made[alias] = make("llama", folder / alias, vocab_size=len(load_words(dump(data)).get_vocab()))
        torch.manual_seed(seed)
        (folder / alias / "tokenizer.json").write_bytes(dump(data))
        (folder / alias / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return made


def numbers(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("models", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("kind", FIRST)
def test_words_have_their_own_rows_under_the_numbers_that_transformers_loads(
    kind: str, models: Sequence[str], listed: bool, tmp_path: Path
) -> None:
    made = held(kind, tmp_path)
    if listed:
        for alias in models:
            added = json.loads((tmp_path / alias / "tokenizer.json").read_text())["added_tokens"]
            settings = {"added_tokens_decoder": {str(entry["id"]): {"content": entry["content"]} for entry in added}}
            (tmp_path / alias / "tokenizer_config.json").write_text(json.dumps(settings))
    for alias in models:
        bs.load({
            "inputs": [f"{each}::{tmp_path / each}" for each in models],
            "transforms": [{"vocab": {"models": [*models], "tokenizer": "union"}}],
            "output": {"path": f"{tmp_path / alias}_out/", "alias": alias},
        }).run(durable=False)  # fmt: skip
        old, new = numbers(tmp_path / alias), numbers(tmp_path / f"{alias}_out")
        assert set(new) == {*numbers(tmp_path / "a"), *numbers(tmp_path / "b")}
        assert sorted(new.values()) == list(range(len(new)))
        before, after = (
            model.get_input_embeddings().weight for model in (made[alias], load(tmp_path / f"{alias}_out"))
        )
        assert len(after) == len(new)
        for word, number in old.items():
            assert torch.equal(after[new[word]], before[number]), word


@pytest.mark.parametrize("kind", FIRST)
def test_texts_of_the_first_tokenizer_are_encoded_as_they_were(kind: str, tmp_path: Path) -> None:
    """But for words that only the other one has."""
    held(kind, tmp_path)
    files = unite({alias: lambda name, alias=alias: (tmp_path / alias / name).read_bytes()
                   if (tmp_path / alias / name).exists() else None for alias in "ab"})  # fmt: skip
    first, union = load_words((tmp_path / "a/tokenizer.json").read_bytes()), load_words(files["tokenizer.json"])
    declared = json.loads(files["tokenizer.json"])
    loaded = union.get_vocab()
    assert all(loaded[entry["content"]] == entry["id"] for entry in declared["added_tokens"])
    assert all(loaded[word] == n for word, n in declared["model"]["vocab"].items())
    for text in ("ab a b", "<|eot|><|start|> aha ab", "ab<|start|>b <|eot|>", "aha <|EOT|> b"):
        assert union.encode(text).tokens == first.encode(text).tokens
    assert "<|x|>" in union.encode("ab<|x|>a").tokens


def unite_two(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, bytes]:
    files = {"a": dump(first), "b": dump(second)}
    return unite(
        {alias: lambda name, alias=alias: files[alias] if name == "tokenizer.json" else None for alias in "ab"}
    )


def test_unigram_tokenizers_share_added_words() -> None:
    words = ["<unk>", "▁a", "b"]
    files = unite_two(tokenizer("Unigram", words, {"<x>": 3}), tokenizer("Unigram", words, {"<y>": 3, "<x>": 4}))
    assert load_words(files["tokenizer.json"]).get_vocab() == {"<unk>": 0, "▁a": 1, "b": 2, "<x>": 3, "<y>": 4}
    with pytest.raises(Refusal, match="cannot be given"):
        unite_two(tokenizer("Unigram", words, {}), tokenizer("Unigram", [*words, "c"], {}))


def union(folder: Path, asked: str = "union") -> bs.Plan:
    return bs.load({
        "inputs": [f"{each}::{folder / each}" for each in "ab"],
        "transforms": [{"vocab": {"models": ["a", "b"], "tokenizer": asked}}],
        "output": {"path": f"{folder / 'out'}/", "alias": "b"},
    })  # fmt: skip


@pytest.mark.parametrize("meant", [4, 5])
def test_declared_numbers_that_loaders_do_not_give_are_refused_and_both_remedies_mend_them(
    meant: int, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    made, file = held("BPE", tmp_path), tmp_path / "a/tokenizer.json"
    data = tokenizer("BPE", FIRST["BPE"], {"<|start|>": 5, "<|eot|>": 4})
    file.write_bytes(dump(data))
    for asked in ("union", "a"):
        with pytest.raises(bs.PlanError, match=r"declares the number 5 for .*, and loaders give it 4") as told:
            union(tmp_path, asked).run(durable=False)
        hint = "If row 5 is meant, list it in `model.vocab`; if row 4, write the file anew"
        assert hint in str(told.value)
    if meant == 5:
        data["model"]["vocab"] |= {"<|start|>": 5, "<|eot|>": 4}
        file.write_bytes(dump(data))
    else:
        AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "a")
    union(tmp_path, "a").run(durable=False)
    assert numbers(tmp_path / "out")["<|start|>"] == meant
    before, after = made["b"].get_input_embeddings().weight, load(tmp_path / "out").get_input_embeddings().weight
    assert torch.equal(after[meant], before[4])  # the row of the word in the model that is written


@pytest.mark.parametrize(("kind", "words", "marks"), [
    ("WordPiece", {"ab": 4, "x": 5}, {"single_word": True}), ("WordPiece", {"ab": 4, "x": 5}, {}),
    ("WordLevel", {"<|ab|>": 4, "x": 5}, {"single_word": True}),
])  # fmt: skip
def test_words_that_a_model_would_then_find_by_itself_have_no_union(
    kind: str, words: Mapping[str, int], marks: Mapping[str, bool], tmp_path: Path
) -> None:
    """WordPiece would cut `abc` into `ab` and `##c`, and `AB` is written small only after added words are cut out."""
    held(kind, tmp_path)
    (tmp_path / "a/tokenizer.json").write_bytes(dump(tokenizer(kind, FIRST[kind], words, **marks)))
    with pytest.raises(bs.PlanError, match="would find them within other words") as told:
        union(tmp_path).run(durable=False)
    assert "Keep the words of one model: `tokenizer: a`." in str(told.value)
    union(tmp_path, "a").run(durable=False)
    assert numbers(tmp_path / "out") == load_words((tmp_path / "a/tokenizer.json").read_bytes()).get_vocab()
