"""The words of a tokenizer, read from the files beside a checkpoint, and where those of another one are among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.wording import few

Read = Callable[[str], bytes | None]
"""The content of a side file by its name; None if there is none."""

Spelling = Literal["bytes", "marked", "pieces", "plain"]
"""How words are spelt: a letter for each byte (GPT-2), `▁` for a space (SentencePiece), `##` where a word goes on
(WordPiece), or as they are."""

MARK, GOES_ON = "▁", "##"
FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


class Vocabulary(NamedTuple):
    """The words of a tokenizer by their numbers: those of its model, and those that were added and are never cut."""

    file: str
    spelling: Spelling
    words: Mapping[int, str]
    added: Mapping[int, str]

    @property
    def size(self) -> int:
        """One more than the largest number."""
        return max((*self.words, *self.added), default=-1) + 1

    def word(self, number: int) -> str | None:
        """The word of a number."""
        return self.added.get(number, self.words.get(number))


def read_vocabulary(read: Read, alias: str, key: str) -> Vocabulary:
    """The words of the tokenizer beside the checkpoint of an alias. Raises Refusal."""
    for file in FILES:
        if (content := read(file)) is None:
            continue
        try:
            if file == FILES[0]:
                refuse_other_numbers(parse_json(content), alias, key)
            spelling, words, added = _READERS[file](content)
            if file != FILES[0]:
                added = {**added, **dict(_list(read))}
                added |= _extra_words(read, file, max((*words, *added)) + 1)
                _refuse_unnumbered(read, (file, alias, key), {*words.values(), *added.values()})
            return Vocabulary(file, spelling, words, added)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Refusal("structure-words", f"{file} of '{alias}' holds no words that are understood: {error!r}",
                          key=key, hint="Save the tokenizer as tokenizer.json.") from error  # fmt: skip
    raise Refusal("structure-words", f"beside the checkpoint of '{alias}' lies none of {', '.join(FILES)}", key=key,
                  hint="Name an alias whose folder has the files of its tokenizer.")  # fmt: skip


class AddedNumbers(NamedTuple):
    """An added word with its number, as tokenizer.json declares it and as loaders give it."""

    word: str
    declared: int
    loaded: int


def added_numbers(data: Mapping[str, Any]) -> list[AddedNumbers]:
    """The numbers of the added words of tokenizer.json, in its order.

    The library tokenizers reads no declared number. A word of the model has its number there; the others are counted
    from the number of words that the model has, in their order. A hole among the numbers of the model is not seen.
    Reference: https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/tokenizer/added_vocabulary.rs.
    """
    words, found = model_words(data), dict[str, AddedNumbers]()
    following = len(data["model"]["vocab"])
    for entry in data.get("added_tokens") or ():
        if not (text := str(entry["content"])) or text in found:
            continue
        found[text] = AddedNumbers(text, int(entry["id"]), words.get(text, following))
        following += text not in words
    return [*found.values()]


def model_words(data: Mapping[str, Any]) -> dict[str, int]:
    """The words of the model of tokenizer.json, without those that are only added."""
    listed = data["model"]["vocab"]
    return {entry[0]: n for n, entry in enumerate(listed)} if isinstance(listed, list) else dict(listed)


def refuse_other_numbers(data: Mapping[str, Any], alias: str, key: str) -> None:
    """Refuse a tokenizer.json that declares numbers which loaders do not give: nobody knows which rows are meant."""
    if wrong := next((each for each in added_numbers(data) if each.declared != each.loaded), None):
        why = f"{FILES[0]} of '{alias}' declares the number {wrong.declared} for {wrong.word!r}, and loaders give it"
        hint = (
            f"If row {wrong.declared} is meant, list it in `model.vocab`; if row {wrong.loaded}, write the file anew: "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`."
        )
        raise Refusal("structure-words", f"{why} {wrong.loaded}", key=key, hint=hint)


# --- Files ------------------------------------------------------------------------------------------------------------

_Words = tuple[Spelling, Mapping[int, str], Mapping[int, str]]


def _read_fast(content: bytes) -> _Words:
    """The words of tokenizer.json, the file of the library tokenizers."""
    data = parse_json(content)
    model = data["model"]
    words = _turn(model_words(data))
    stages = [data.get(stage) for stage in ("normalizer", "pre_tokenizer", "decoder")]
    added = {int(entry["id"]): str(entry["content"]) for entry in data.get("added_tokens") or ()}
    if model.get("type") == "WordPiece":
        return "pieces", words, added
    texts = {text for stage in stages for text in _texts(stage)}
    return "bytes" if "ByteLevel" in texts else "marked" if MARK in texts else "plain", words, added


def _texts(value: Any) -> Iterator[str]:
    """All texts within a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _turn(numbers: Mapping[str, int]) -> dict[int, str]:
    return {int(number): text for text, number in numbers.items()}


def _read_numbers(content: bytes) -> _Words:
    """The words of vocab.json, a table of their numbers."""
    words = _turn(parse_json(content))
    letters = {letter for text in words.values() for letter in (text[:1], text[-1:])}
    return "bytes" if _LETTERS[ord(" ")] in letters else "marked" if MARK in letters else "plain", words, {}


def _read_lines(content: bytes) -> _Words:
    """The words of vocab.txt, one a line."""
    return "pieces", dict(enumerate(content.decode().removesuffix("\n").split("\n"))), {}


def _read_pieces(content: bytes) -> _Words:
    """The words of a model of SentencePiece: messages of protobuf in its field 1, each with the text in its field 1 and
    the type in its field 3, where 3 and 4 are words that are never cut.

    Reference: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
    """
    words, added = dict[int, str](), dict[int, str]()
    for number, piece in enumerate(value for field, value in _fields(content) if field == 1):
        held = dict(_fields(piece)) if isinstance(piece, bytes) else {}
        text = held[1]
        (added if held.get(3) in (3, 4) else words)[number] = text.decode() if isinstance(text, bytes) else ""
    if not words:
        raise ValueError("it has no pieces")
    return "marked", words, added


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message of protobuf: their numbers and values. Raises ValueError, IndexError."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(content):
            raise ValueError("it is cut off")
        yield tag >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


_READERS: Mapping[str, Callable[[bytes], _Words]] = {
    "tokenizer.json": _read_fast,
    "tokenizer.model": _read_pieces,
    "spiece.model": _read_pieces,
    "vocab.json": _read_numbers,
    "vocab.txt": _read_lines,
}


def _list(read: Read) -> Iterator[tuple[int, str]]:
    """The added words that files beside the words list."""
    if (content := read("added_tokens.json")) is not None:
        yield from _turn(parse_json(content)).items()
    if (content := read("tokenizer_config.json")) is not None:
        for number, entry in (parse_json(content).get("added_tokens_decoder") or {}).items():
            yield int(number), str(entry["content"])


_T5 = ("T5Tokenizer", "T5TokenizerFast")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
          "additional_special_tokens", "extra_special_tokens")  # fmt: skip


def _settings(read: Read, file: str = "tokenizer_config.json") -> Mapping[str, Any]:
    found = parse_json(content) if (content := read(file)) is not None else {}
    return found if isinstance(found, dict) else {}


def _extra_words(read: Read, file: str, count: int) -> dict[int, str]:
    """The words `<extra_id_0>` and so on of a T5, which are not in spiece.model: its class puts them behind the others,
    the last one first. It has 100 of them unless tokenizer_config.json says otherwise."""
    settings = _settings(read)
    if file != "spiece.model" or settings.get("tokenizer_class") not in _T5:
        return {}
    more = int(settings.get("extra_ids", 100))
    return {count + at: f"<extra_id_{more - 1 - at}>" for at in range(more)}


def _refuse_unnumbered(read: Read, place: tuple[str, str, str], known: Collection[str]) -> None:
    """Refuse a tokenizer with words that only its class in Python has numbers for."""
    file, alias, key = place
    settings = {**_settings(read, "special_tokens_map.json"), **_settings(read)}
    hint = "Save the tokenizer as tokenizer.json."
    if file == "spiece.model" and not settings.get("tokenizer_class"):
        why = f"{file} of '{alias}' may be that of a T5, with more words, or of another class: nothing says which"
        raise Refusal("structure-words", why, key=key, hint=hint)
    named = [word for mark in _NAMED for word in _contents(settings.get(mark))]
    if strange := [repr(word) for word in dict.fromkeys(named) if word not in known]:
        why = f"{few(strange)} of '{alias}' have no number in {file}, nor in the files beside it"
        raise Refusal("structure-words", why, key=key, hint=hint)


def _contents(value: Any) -> Iterator[str]:
    """The words that a setting names: one, several, or several by what they are for."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and "content" in value:
        yield str(value["content"])
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _contents(inner)


# --- The same words ---------------------------------------------------------------------------------------------------


def _letters() -> dict[int, str]:
    """The letter of every byte in the vocabularies of GPT-2: itself if it is printed, else one of those from 256 on."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printed)
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def _spell(text: str, spelling: Spelling) -> bytes:
    """What a word stands for in a text, as bytes of UTF-8; words of WordPiece start with a space unless they go on."""
    if spelling == "bytes" and all(letter in _BYTES for letter in text):
        return bytes(_BYTES[letter] for letter in text)
    if spelling == "marked" and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes.fromhex(text[3:5])
    if spelling == "pieces":
        return (text.removeprefix(GOES_ON) if text.startswith(GOES_ON) else f" {text}").encode()
    return (text.replace(MARK, " ") if spelling == "marked" else text).encode()


def other_words(one: Vocabulary, other: Vocabulary) -> list[int]:
    """The numbers, in their order, that two vocabularies both have, for words that stand for something else."""

    def meant(held: Vocabulary, number: int) -> bytes:
        added = held.added.get(number)
        return _spell(held.words[number], held.spelling) if added is None else added.encode()

    shared = {*one.words, *one.added} & {*other.words, *other.added}
    return sorted(n for n in shared if one.word(n) != other.word(n) and meant(one, n) != meant(other, n))


def find_words(new: Vocabulary, old: Vocabulary, count: int) -> Sequence[int | None]:
    """For every number of a vocabulary, that of the same word in another one, of numbers below `count`; None where it
    has no such word, or where no word has the number.

    Words are the same if they stand for the same bytes, however they are spelt; an added word is one of the same text.
    Of several the one of the same spelling is taken, else the first.
    """
    words = {text: n for n, text in sorted(old.words.items(), reverse=True) if n < count and n not in old.added}
    added = {text: n for n, text in sorted(old.added.items(), reverse=True) if n < count}
    bytes_ = {_spell(text, old.spelling): n for text, n in sorted(words.items(), key=lambda each: -each[1])}

    def find(number: int) -> int | None:
        if (text := new.added.get(number)) is not None:
            return added.get(text, bytes_.get(text.encode()))
        if (text := new.words.get(number)) is None:
            return None
        if new.spelling == old.spelling and text in words:
            return words[text]
        meant = _spell(text, new.spelling)
        return bytes_.get(meant, added.get(meant.decode(errors="replace")))

    return [find(number) for number in range(new.size)]
