"""Models of different tokenizers: their tables are merged by the text of words, as mergekit does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.importers.mergekit import plan_of
from tests.checkpoints import read
from tests.hints.test_structure import hints
from tests.importers.merges import CONFIG, WORDS, models, put_config, put_models

SPECIAL = ["<s>", "</s>"]
OWN = {
    "a": [*SPECIAL, "Ġcat", "Ġthe", "s", "<|x|>"],
    "b": [*SPECIAL, "s", "Ġdog", "Ġthe", "<|end|>"],
    "c": [*SPECIAL, "Ġdog", "Ġthe", "<|end|>"],
}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def put_tokenizer(folder: Path, words: Sequence[str], merges: Sequence[Sequence[str]] = ()) -> None:
    """A tokenizer with a letter for each byte; words with `<` are added ones."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": word, "special": True, **plain} for n, word in enumerate(words) if "<" in word]
    vocab = {word: n for n, word in enumerate(words)}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    data = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": letters,
            "model": {"type": "BPE", "vocab": vocab, "merges": [*merges]}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    listed = {str(each["id"]): {"content": each["content"], "special": True} for each in added}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))


@pytest.fixture
def held(here: Path) -> Mapping[str, Any]:
    """Three models, each with a tokenizer of its own; rows beyond its words are padding."""
    found = put_models(here)
    for letter, words in OWN.items():
        put_tokenizer(here / letter, words, [["s", letter]])
    return found


def words_of(folder: Path) -> dict[str, int]:
    data = json.loads((folder / "tokenizer.json").read_text())
    return data["model"]["vocab"] | {each["content"]: each["id"] for each in data["added_tokens"]}


def merge(here: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    (here / "plan.yaml").write_text(plan_of(put_config(here, config).name))
    bs.load("plan.yaml").run(durable=False)
    return read(here / "merged" / "model.safetensors")


def row(held: Mapping[str, Any], table: str, word: str, letter: str, of: str, base: str = "") -> np.ndarray:
    """The row of a word in a model, that of the base where it lacks it, or the mean of those that have it."""
    rows = {x: held[x][table][OWN[x].index(word)] for x in of if word in OWN[x]}
    return rows.get(letter, rows.get(base, np.mean([*rows.values()], axis=0)))


LINEAR = {"merge_method": "linear", "models": models(a=1, b=1, c=1)}
ALL = list(dict.fromkeys(word for words in OWN.values() for word in words))


def test_rows_of_other_words_that_are_merged_as_they_are_stand_in_the_plan_with_what_helps(here: Path, held: Any):
    text = plan_of(put_config(here, LINEAR).name)
    helps = "`tokenizer_source: union` would merge rows of the same word."
    assert f"# Row 2 is merged as it is: 'Ġcat' in a, 's' in b, and 3 more rows. {helps}\n" in text
    assert "# Row 2 is merged as it is: 'Ġcat' in a, 'Ġdog' in c, and 1 more row." in text
    assert "is merged as it is" not in plan_of(put_config(here, {**LINEAR, "tokenizer_source": "union"}).name)
    for letter in "bc":
        put_tokenizer(here / letter, OWN["a"][:5])
    assert "is merged as it is" not in plan_of(put_config(here, LINEAR).name)


@pytest.mark.parametrize("key", [{"tokenizer_source": "union"}, {"tokenizer": {"source": "union"}}])
def test_a_union_averages_rows_of_the_same_text(here: Path, held: Mapping[str, Any], key: Mapping[str, Any]):
    found = merge(here, {**LINEAR, **key})
    numbers = words_of(here / "merged")
    assert set(numbers) == set(ALL) and sorted(numbers.values()) == list(range(len(ALL)))
    for table in TABLES:
        assert len(found[table]) == len(ALL)
        for word, number in numbers.items():
            expected = np.mean([row(held, table, word, x, "abc") for x in "abc"], axis=0)
            np.testing.assert_allclose(found[table][number], expected, atol=1e-6)


def test_a_union_writes_a_tokenizer_and_a_config_of_all_words(here: Path, held: Mapping[str, Any]):
    merge(here, {**LINEAR, "tokenizer_source": "union"})
    data = json.loads((here / "merged/tokenizer.json").read_text())
    numbers = words_of(here / "merged")
    assert [numbers[word] for word in OWN["a"]] == list(range(len(OWN["a"])))
    assert data["model"]["merges"] == [["s", "a"], ["s", "b"]]  # all words of c are known by then
    assert json.loads((here / "merged/config.json").read_text())["vocab_size"] == len(ALL)
    settings = json.loads((here / "merged/tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"][str(numbers["<|end|>"])]["content"] == "<|end|>"


def test_words_that_a_model_lacks_get_the_row_of_the_base(here: Path, held: Mapping[str, Any]):
    config = {"merge_method": "task_arithmetic", "base_model": "a", "models": models(b=1, c=1)}
    found = merge(here, {**config, "tokenizer": {"source": "union"}})
    for word, number in words_of(here / "merged").items():
        base, b, c = (row(held, TABLES[0], word, x, "abc", "a") for x in "abc")
        np.testing.assert_allclose(found[TABLES[0]][number], base + (b - base) + (c - base), atol=1e-6)


@pytest.mark.parametrize("source", ["base", "c"])
def test_the_words_of_one_model_are_found_in_the_others(here: Path, held: Mapping[str, Any], source: str):
    found = merge(here, {"merge_method": "linear", "models": models(a=1, b=1), "tokenizer_source": source})
    own = OWN["a" if source == "base" else source]
    assert len(found[TABLES[0]]) == len(own)
    for number, word in enumerate(own):
        known = any(word in OWN[x] for x in "ab")
        expected = np.mean([row(held, TABLES[0], word, x, "ab") for x in "ab"], axis=0) if known else 0
        np.testing.assert_allclose(found[TABLES[0]][number], expected, atol=1e-6)
    assert set(words_of(here / "merged")) == set(own)


def test_a_configuration_names_the_rows_of_words(here: Path, held: Mapping[str, Any]):
    tokens = {
        "<|end|>": {"source": "c"},
        "<|x|>": {"source": {"kind": "zero"}},
        "Ġcat": {"source": {"kind": "model_token", "model": "b", "token": "Ġdog"}, "force": True},
        "s": {"source": {"kind": "model_token", "model": "b", "token_id": 4}},
        "Ġdog": {"force": True},
    }
    wanted = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 16}
    found, numbers = merge(here, {**LINEAR, "tokenizer": wanted})[TABLES[0]], words_of(here / "merged")
    a, b, c = ({word: held[x][TABLES[0]][n] for n, word in enumerate(OWN[x])} for x in "abc")
    expected = {
        "<|end|>": (c["<|end|>"] * 2 + b["<|end|>"]) / 3,
        "<|x|>": a["<|x|>"] / 3,
        "Ġcat": b["Ġdog"],
        "s": (a["s"] + b["s"] + b["Ġthe"]) / 3,
        "Ġdog": (b["Ġdog"] + c["Ġdog"]) / 2,
    }
    for word, exact in expected.items():
        np.testing.assert_allclose(found[numbers[word]], exact, atol=1e-6)
    assert len(found) == 16
    np.testing.assert_allclose(found[8:], np.broadcast_to(found[:8].mean(0), (8, found.shape[1])), atol=1e-6)


def test_slices_of_models_have_the_same_words(here: Path, held: Mapping[str, Any]):
    pieces = [{"sources": [{"model": x, "layer_range": [0, 1]}]} for x in "ab"]
    found = merge(here, {"merge_method": "passthrough", "slices": pieces, "tokenizer_source": "union"})
    numbers = words_of(here / "merged")
    for table, letter in zip(TABLES, "ab", strict=True):
        for word, number in numbers.items():
            np.testing.assert_allclose(found[table][number], row(held, table, word, letter, "ab"), atol=1e-6)


def test_other_methods_merge_aligned_tables(here: Path, held: Mapping[str, Any]):
    config = {"merge_method": "slerp", "base_model": "a", "models": models(b=None), "parameters": {"t": 0}}
    found = merge(here, {**config, "tokenizer_source": "union"})
    assert len(found[TABLES[0]]) == len({*OWN["a"], *OWN["b"]}) == len(words_of(here / "merged"))
    np.testing.assert_allclose(found[TABLES[0]][: len(OWN["a"])], held["a"][TABLES[0]][: len(OWN["a"])], atol=1e-6)


def test_tables_with_rows_of_no_word_are_cut(here: Path, held: Mapping[str, Any]):
    assert len(OWN["a"]) < WORDS and CONFIG["vocab_size"] == WORDS
    assert len(merge(here, {**LINEAR, "tokenizer_source": "base"})[TABLES[0]]) == len(OWN["a"])


@pytest.mark.parametrize(
    ("change", "why", "hint"),
    [
        (lambda data: data["model"].update(type="WordLevel"), "has 'Ġdog'.* cannot be given", "`tokenizer: a`"),
        (lambda data: data["model"].update(vocab=3), "holds no words that are understood", "`tokenizer: b`"),
    ],
)
def test_tokenizers_of_other_kinds_have_no_union(here: Path, held: Mapping[str, Any], change: Any, why: str, hint: str):
    data = json.loads((here / "b/tokenizer.json").read_text())
    change(data)
    (here / "b/tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(bs.PlanError, match=why) as refused:
        merge(here, {**LINEAR, "tokenizer_source": "union"})
    assert hint in str(refused.value)
    if "b" not in hint:
        assert len(merge(here, {**LINEAR, "tokenizer_source": "base"})[TABLES[0]]) == len(OWN["a"])


TIE = {"tie": {"alias": "b", "replace": True}}


def union(**more: Any) -> dict[str, Any]:
    return {"vocab": {"models": ["a", "b"], "tokenizer": "union", **more}}


@pytest.mark.parametrize(("wrong", "says", "mended"), [
    ([{"vocab": {"tokenizer": "b", "alias": "a", "base": "b"}}], "List them: `models: [a, b]`.", [union(base="b")]),
    ([union(size=64)], "Leave size out; with `models` go tokenizer, base, words and multiple_of.",
     [union(multiple_of=64)]),
    ([{"vocab": {"models": ["a", "b"]}}], "Add `tokenizer: union`, or the alias of a model.", [union()]),
    ([union(base="c")], "Name one of them (a, b), or add it to `models`.", [union(base="a")]),
    ([union(words={" dog": "b"})], "Write it as tokenizer.json spells it (`Ġ` or `▁` for a space).",
     [union(words={"Ġdog": "b"})]),
    ([union(words={"Ġdog": "a"})], "Name a word of 'a': `{from: a, word: TEXT}`, or `zero`.",
     [union(words={"Ġdog": {"from": "a", "word": "Ġcat"}})]),
    ([{"vocab": {"models": ["a"], "tokenizer": "b"}}], "Their rows hold zeros; name better ones by `words`.",
     [{"vocab": {"models": ["a"], "tokenizer": "b", "words": dict.fromkeys(["Ġdog", "<|end|>"], "zero")}}]),
    ([TIE, union()], "Give it one, a copy of its other table: `untie: {alias: b}`.",
     [TIE, {"untie": {"alias": "b"}}, union()]),
])  # fmt: skip
def test_what_a_hint_on_words_says_mends_the_plan(
    here: Path, held: Mapping[str, Any], wrong: Any, says: str, mended: Any
):
    def asked(steps: Any) -> bs.Plan:
        return bs.load({"inputs": ["a::a", "b::b", "c::c"], "transforms": steps,
                        "output": {"path": "out/", "alias": "a"}})  # fmt: skip

    assert any(says in hint for hint in hints(asked(wrong)))
    assert not any(says in hint for hint in hints(asked(mended)))
    asked(mended).run(durable=False)


@pytest.mark.parametrize("tokens", [{"x": {"source": "c"}}, {"x": 3}, {"x": {"source": "a", "force": 3}}])
def test_what_is_said_of_words_is_checked(here: Path, held: Mapping[str, Any], tokens: Any):
    config = {"merge_method": "linear", "models": models(a=1, b=1), "tokenizer": {"source": "union", "tokens": tokens}}
    with pytest.raises(bs.PlanError, match=r"which is not merged|expected"):
        plan_of(put_config(here, config).name)


# --- Templates of chats -----------------------------------------------------------------------------------------------


def put_template(folder: Path, text: str, *, in_settings: bool = False) -> None:
    if in_settings:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": text}))
    else:
        (folder / "chat_template.jinja").write_text(text)


def note_of(here: Path, asked: str) -> str:
    """What the comments of the plan say of a template that is asked for."""
    text = plan_of(put_config(here, {**LINEAR, "chat_template": asked}).name)
    return next(line for line in text.splitlines() if "chat_template (" in line)


def test_the_usual_template_is_that_of_the_copied_files(here: Path, held: Mapping[str, Any]):
    put_template(here / "a", "A", in_settings=True)
    put_template(here / "c", "A")
    assert note_of(here, "auto").endswith(") is that of a, whose files are copied.")


TEXT = "{% for m in messages %}<{{ m['role'] }}>'\t\"é\U0001f600\n{% endfor %}\n"


def run_chat(here: Path, asked: str) -> tuple[str, dict[str, str]]:
    """The plan for a template that is asked for, and the texts of the files that it writes beside the weights."""
    text = plan_of(put_config(here, {**LINEAR, "chat_template": asked}).name)
    (here / "plan.yaml").write_text(text)
    bs.load("plan.yaml").run(durable=False)
    files = (path for path in (here / "merged").iterdir() if path.suffix in (".json", ".jinja"))
    return text, {path.name: path.read_text() for path in files}


@pytest.mark.parametrize("in_settings", [False, True])
def test_the_usual_template_of_other_models_gets_into_the_result(
    here: Path, held: Mapping[str, Any], in_settings: bool
):
    for letter, text in {"a": "A", "b": TEXT, "c": TEXT}.items():
        put_template(here / letter, text, in_settings=in_settings)
    plan, files = run_chat(here, "auto")
    assert ") is that of b, which the last step sets." in plan
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings.get("chat_template"), files.get("chat_template.jinja")) == (
        (TEXT, None) if in_settings else (None, TEXT)
    )


def test_models_without_a_template_have_no_usual_one(here: Path, held: Mapping[str, Any]):
    assert note_of(here, "auto").endswith(") has no effect: no model has a template.")


def test_the_text_of_a_template_is_set_exactly(here: Path, held: Mapping[str, Any]):
    _, files = run_chat(here, TEXT)
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == TEXT


def test_a_template_by_name_is_left_to_be_written_into_a_step(here: Path, held: Mapping[str, Any]):
    plan, files = run_chat(here, "chatml")
    assert "is not applied: the text of 'chatml' is part of mergekit." in plan
    assert "chat_template" not in json.loads(files["tokenizer_config.json"])
    last = next(line for line in plan.splitlines() if line.startswith("  # - config: "))
    (here / "plan.yaml").write_text(plan.replace(last, last.replace("# ", "").replace("TEXT", "{{ a }}")))
    bs.load("plan.yaml").run(durable=False, overwrite=True)
    settings = json.loads((here / "merged" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ a }}"


# --- Revisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["org/name@v1.2", {"model": {"path": "org/name", "revision": "v1.2"}}])
def test_a_revision_is_downloaded_into_a_folder_of_its_own(here: Path, held: Mapping[str, Any], model: Any):
    both = [{"model": of, "parameters": {"weight": 1}} for of in ("a", model)]
    config = {"merge_method": "linear", "dtype": "float32", "models": both}
    text = plan_of(put_config(here, config).name)
    assert "hf download org/name --revision v1.2 --local-dir org/name@v1.2" in text
    (here / "org").mkdir()
    (here / "b").rename(here / "org/name@v1.2")
    (here / "plan.yaml").write_text(text)
    bs.load("plan.yaml").run(durable=False)
    found = read(here / "merged" / "model.safetensors")
    np.testing.assert_allclose(found[TABLES[0]], (held["a"][TABLES[0]] + held["b"][TABLES[0]]) / 2, atol=1e-6)


def test_a_revision_of_a_folder_is_refused(here: Path, held: Mapping[str, Any]):
    config = {"merge_method": "linear", "models": [{"model": "a@v1", "parameters": {"weight": 1}}]}
    with pytest.raises(
        bs.PlanError, match="'a' is on this machine, where models have no revisions such as 'v1'"
    ) as told:
        plan_of(put_config(here, config).name)
    assert "name the path alone: `a`" in str(told.value)
    config["models"] = [{"model": "a", "parameters": {"weight": 1}}]
    assert "- a::a" in plan_of(put_config(here, config).name)
