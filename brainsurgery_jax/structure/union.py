"""The union of several tokenizers: the files of the first one, with the words that only the others have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.vocabulary import Read, added_numbers, model_words, refuse_other_numbers
from brainsurgery_jax.wording import few

UNION = "union"
_FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_KEPT = (_SETTINGS, "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files of the first tokenizer that the union has, too. Those with words are left out: they would lack some."""
_MARKS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def unite(readers: Mapping[str, Read]) -> dict[str, bytes]:
    """The files of the union, by the aliases of the tokenizers. Words of the first keep their numbers; those of the
    others follow, first the ones of their models, then added ones, each in the order of their numbers.

    Raises Refusal for a tokenizer that is not the file of the library tokenizers, or of another kind than the first.
    """
    (first, *others), loaded = readers, {alias: _load(alias, read) for alias, read in readers.items()}
    made = loaded[first]
    added: list[dict[str, Any]] = []
    for alias in others:
        _add_words(made, first, loaded[alias], alias)
    for alias in others:
        added += _add_marked(made, loaded[alias])
    _fix_numbers(made, first)
    files = {name: content for name in _KEPT if (content := readers[first](name)) is not None}
    if added and _SETTINGS in files:
        files[_SETTINGS] = _list_added(files[_SETTINGS], added)
    return {_FILE: _dump(made), **files}


def _load(alias: str, read: Read) -> dict[str, Any]:
    """The file of a tokenizer, changed freely."""
    content = read(_FILE)
    hint = (
        "Save it by `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`, or keep the words of one model: "
        f"`tokenizer: {alias}`."
    )
    if content is None:
        why = f"beside the checkpoint of '{alias}' lies no {_FILE}, of which a union is made"
        raise Refusal("structure-words", why, key="tokenizer", hint=hint)
    try:
        data = parse_json(content)
        refuse_other_numbers(data, alias, "tokenizer")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Refusal("structure-words", f"{_FILE} of '{alias}' holds no words that are understood: {error!r}",
                      key="tokenizer", hint=hint) from error  # fmt: skip
    return data


def _all_words(data: Mapping[str, Any]) -> dict[str, int]:
    return model_words(data) | {str(entry["content"]): int(entry["id"]) for entry in data.get("added_tokens") or ()}


def _add_words(made: dict[str, Any], first: str, data: Mapping[str, Any], alias: str) -> None:
    """Give a tokenizer the words of the model of another one, and how they are put together."""
    known = _all_words(made)
    marked = {str(entry["content"]) for entry in data.get("added_tokens") or ()}
    new = [word for word, _ in sorted(model_words(data).items(), key=lambda each: each[1])]
    new = [word for word in new if word not in known and word not in marked]
    if not new:
        return
    kinds = [str(each["model"].get("type")) for each in (made, data)]
    stages = [_stages(each) for each in (made, data)]
    if kinds[0] != kinds[1] or stages[0] != stages[1] or isinstance(made["model"]["vocab"], list):
        why = f"'{alias}' ({kinds[1]}) has {few([repr(w) for w in new])}, which the tokenizer of '{first}' ({kinds[0]})"
        raise Refusal("structure-words", f"{why} cannot be given", key="tokenizer",
                      hint=f"Keep the words of one model: `tokenizer: {first}`.")  # fmt: skip
    start = max(known.values(), default=-1) + 1
    made["model"]["vocab"].update({word: start + at for at, word in enumerate(new)})
    if "merges" in made["model"]:
        made["model"]["merges"] = [*made["model"]["merges"], *_new_merges(made, data)]


def _stages(data: Mapping[str, Any]) -> list[str]:
    """What says how a text is spelt before it is cut into words."""
    stages = (data.get(stage) for stage in ("normalizer", "pre_tokenizer"))
    return [str(stage.get("type")) if isinstance(stage, Mapping) else "" for stage in stages]


def _new_merges(made: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[object]:
    """The merges of another tokenizer that are not there yet, in its order, spelt as those that are there."""
    known = {tuple(_pair(merge)) for merge in made["model"]["merges"]}
    joined = any(isinstance(merge, str) for merge in made["model"]["merges"])
    for merge in data["model"].get("merges") or ():
        if tuple(pair := _pair(merge)) not in known:
            yield " ".join(pair) if joined else pair


def _pair(merge: str | Sequence[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else [*merge]


def _add_marked(made: dict[str, Any], data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give a tokenizer the added words of another one; yields them with their numbers."""
    known = _all_words(made)
    have = {str(entry["content"]) for entry in made.get("added_tokens") or ()}
    following = max(known.values(), default=-1) + 1
    for entry in sorted(data.get("added_tokens") or (), key=lambda each: int(each["id"])):
        if (text := str(entry["content"])) in have:
            continue
        number = known.get(text, following)
        following = max(following, number + 1)
        made.setdefault("added_tokens", []).append({**entry, "id": number})
        yield made["added_tokens"][-1]


def _fix_numbers(made: dict[str, Any], first: str) -> None:
    """Let loaders give added words the declared numbers: where they do not by themselves, the model lists the words.

    A model never sees an added word, which is cut out of a text before, so that the text is encoded as it was.
    """
    while wrong := {each.word for each in added_numbers(made) if each.declared != each.loaded}:
        entries = [entry for entry in made["added_tokens"] if entry["content"] in wrong]
        if seen := [repr(entry["content"]) for entry in entries if _may_be_seen(made, entry)]:
            why = f"other words follow those that '{first}' adds, so that its model has to list {few(seen)}"
            raise Refusal("structure-words", f"{why}, and would find them within other words", key="tokenizer",
                          hint=f"Keep the words of one model: `tokenizer: {first}`.")  # fmt: skip
        made["model"]["vocab"] |= {entry["content"]: int(entry["id"]) for entry in entries}


def _may_be_seen(data: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether a text may hold an added word that is not cut out of it, so that a model that lists it finds it.

    That needs a word that is only cut out where it stands alone, or before a text is normalized; and a model that looks
    up more than letters and what its merges make.
    """
    model, (_, pre) = data["model"], _stages(data)
    looked_up = model.get("type") != "BPE" or model.get("ignore_merges") or len(entry["content"]) == 1
    # BERT cuts a text at punctuation, so that its model never sees the whole of `[MASK]`.
    cut = pre == "BertPreTokenizer" and not str(entry["content"]).isalnum()
    early = not entry.get("normalized", True) and data.get("normalizer") is not None and not cut
    return bool(looked_up and (entry.get("single_word") or early))


def _list_added(content: bytes, added: Sequence[Mapping[str, Any]]) -> bytes:
    """The settings of a tokenizer with the new words, where they list those that were added."""
    settings = parse_json(content)
    if isinstance(listed := settings.get("added_tokens_decoder"), dict):
        listed |= {str(entry["id"]): {mark: entry[mark] for mark in _MARKS if mark in entry} for entry in added}
    return _dump(settings)


def _dump(data: object) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
