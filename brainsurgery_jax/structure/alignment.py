"""The words of one tokenizer for several models: the rows of all tables are about the same words, so that models of
different tokenizers can be merged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from brainsurgery_jax.config_patch import patch_mapping
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, Expand, MakeTokenizer, ModelAsked, Substep, TakeTokenizer, View
from brainsurgery_jax.structure.described import Described, TensorPart, describe, to
from brainsurgery_jax.structure.patches import set_dims
from brainsurgery_jax.structure.positions import follow_words
from brainsurgery_jax.structure.special_words import KeptWords, renumber_generation
from brainsurgery_jax.structure.union import UNION, unite
from brainsurgery_jax.structure.vocab import WORDS, ZERO, axis_of_words
from brainsurgery_jax.vocabulary import Vocabulary, find_words, read_vocabulary
from brainsurgery_jax.wording import few


class AskedRow(NamedTuple):
    """Where the row of a word comes from: of an alias (`zero`: none; no alias: as for
    other words), by a word of its own or by its number, else by
    the same word. `force`: for models that have the word, too."""

    source: str | None
    word: str | int | None
    force: bool


class AskedAlignment(NamedTuple):
    """The models, whose words they get (an alias, or `union`), and where rows come from."""

    models: Sequence[str]
    tokenizer: str | None
    base: str | None
    words: Mapping[str, AskedRow]
    multiple_of: int | None


class Row(NamedTuple):
    """A row of the tables of an alias."""

    alias: str
    number: int


Rows = tuple[Row, ...]
"""Rows whose mean is taken; none for zeros."""


def refuse_shared(given: Mapping[str, object]) -> None:
    """Refuse keys that are about several models where a step is about one."""
    if strange := next((key for key, value in given.items() if value is not None), None):
        hint = "List them: `models: [a, b]`."
        raise Refusal("structure-words", f"{strange} is about several models", key=strange, hint=hint)


def refuse_single(given: Mapping[str, object]) -> None:
    """Refuse keys that are about one model where a step is about several."""
    if strange := next((key for key, value in given.items() if value is not None), None):
        why = f"{strange} is about one model, and `models` lists several"
        hint = f"Leave {strange} out; with `models` go tokenizer, base, words and multiple_of."
        raise Refusal("structure-words", why, key=strange, hint=hint)


def align(view: View, asked: AskedAlignment) -> Iterator[Edit]:
    """What the op `vocab` does with several models."""
    if asked.tokenizer is None:
        hint = "Add `tokenizer: union`, or the alias of a model."
        raise Refusal("structure-words", "whose words are the models to get?", key="models", hint=hint)
    yield from _Alignment(view, asked).edits()


@dataclass(frozen=True)
class _Alignment:
    view: View
    asked: AskedAlignment

    def edits(self) -> Iterator[Edit]:
        self._refuse_unknown()
        size = -(-self.vocabulary.size // (self.asked.multiple_of or 1)) * (self.asked.multiple_of or 1)
        wanted = {alias: list(self._rows(alias)) for alias in self.models}
        self._note_empty()
        for model in self.models.values():
            yield from self._configure(model)
        yield Expand(tuple(self._steps(wanted, size)))

    def _steps(self, wanted: Mapping[str, Sequence[Rows]], size: int) -> Iterator[Substep]:
        """The steps that change the tables and the configs."""
        home, work = self.view.scratch(), self.view.scratch()
        yield from self._keep(home)
        for alias, model in self.models.items():
            more, moved = follow_words(self.view, model, self._kept(model), self._source)
            yield from moved
            yield from model.configure(patch_mapping(set_dims(model, {WORDS: size}), more))
            if all(row == (Row(alias, n),) for n, row in enumerate(wanted[alias])) and size == model.size(WORDS):
                continue
            for part in self.tables(model):
                for name in part.kin.numbers.values():
                    filling = _Table(self.view, self.models, alias, name, axis_of_words(part), home, work)
                    yield from filling.steps(wanted[alias])
                    yield from filling.pad(size - len(wanted[alias]))

    def _refuse_unknown(self) -> None:
        named = [("words", row.source) for row in self.asked.words.values() if row.source not in (None, ZERO)]
        for key, alias in (("base", self.asked.base), *named):
            if alias is not None and alias not in self.asked.models:
                hint = f"Name one of them ({', '.join(self.asked.models)}), or add it to `models`."
                raise Refusal("structure-words", f"'{alias}' is none of the models", key=key, hint=hint)
        known = {*self.vocabulary.words.values(), *self.vocabulary.added.values()}
        if strange := next((word for word in self.asked.words if word not in known), None):
            hint = "Write it as tokenizer.json spells it (`Ġ` or `▁` for a space)."
            raise Refusal("structure-words", f"the tokenizer has no word {strange!r}", key="words", hint=hint)

    # --- what there is

    @cached_property
    def models(self) -> Mapping[str, Described]:
        return {alias: describe(self.view, ModelAsked(alias)) for alias in self.asked.models}

    @staticmethod
    def tables(model: Described) -> list[TensorPart]:
        """The tables that have a row for each word."""
        return [part for part in model.parts if part.axis_with({WORDS}) is not None]

    @cached_property
    def known(self) -> Mapping[str, Vocabulary]:
        """The words of each model."""
        return {alias: self._read(alias, "models") for alias in self.asked.models}

    def _read(self, alias: str, key: str) -> Vocabulary:
        return read_vocabulary(lambda name: self.view.side_file(alias, name, key), alias, key)

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """The files of the union; none if the words are those of an alias."""
        if self.asked.tokenizer != UNION:
            return {}
        read = {a: lambda name, a=a: self.view.side_file(a, name, "models") for a in self.asked.models}
        return unite(read)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that all models get."""
        if self.files:
            return read_vocabulary(self.files.get, UNION, "tokenizer")
        assert self.asked.tokenizer is not None
        return self._read(self.asked.tokenizer, "tokenizer")

    @cached_property
    def places(self) -> Mapping[str, Sequence[int | None]]:
        """The numbers that the words have in each model."""
        return {
            alias: find_words(self.vocabulary, self.known[alias], model.size(WORDS))
            for alias, model in self.models.items()
        }

    # --- which rows

    def _rows(self, alias: str) -> Iterator[Rows]:
        """The row of each word: the model's own one, else that of the others."""
        for number, own in enumerate(self.places[alias]):
            forced = (asked := self._asked(number)) is not None and asked.force
            yield self.spare[number] if own is None or forced else (Row(alias, own),)

    def _asked(self, number: int) -> AskedRow | None:
        word = self.vocabulary.added.get(number) or self.vocabulary.words.get(number)
        return None if word is None else self.asked.words.get(word)

    @cached_property
    def spare(self) -> Sequence[Rows]:
        """The row of each word for models that lack it: as the plan says, that of the base, else the mean of all."""
        return [self._spare(number) for number in range(self.vocabulary.size)]

    def _spare(self, number: int) -> Rows:
        if (asked := self._asked(number)) is not None and asked.source is not None:
            return () if asked.source == ZERO else (self._find(asked, number),)
        rows = {a: Row(a, n) for a, found in self.places.items() if (n := found[number]) is not None}
        return (rows[self.asked.base],) if self.asked.base in rows else tuple(rows.values())

    def _find(self, asked: AskedRow, number: int) -> Row:
        """The row of a model that the plan names."""
        assert asked.source is not None
        known, count = self.known[asked.source], self.models[asked.source].size(WORDS)
        texts = {text: n for held in (known.words, known.added) for n, text in held.items()}
        found = asked.word if isinstance(asked.word, int) else self.places[asked.source][number]
        if isinstance(asked.word, str):
            found = texts.get(asked.word)
        if found is None or not 0 <= found < count:
            word = self.vocabulary.added.get(number) or self.vocabulary.words[number]
            shown = repr(word if asked.word is None else asked.word)
            hint = f"Name a word of '{asked.source}': `{{from: {asked.source}, word: TEXT}}`, or `zero`."
            raise Refusal("structure-words", f"'{asked.source}' has no row for {shown}", key="words", hint=hint)
        return Row(asked.source, found)

    def _note_empty(self) -> None:
        """Tell of words that no model has."""
        empty = [n for n, row in enumerate(self.spare) if not row and self._asked(n) is None]
        words = [repr(w) for n in empty if (w := self.vocabulary.added.get(n) or self.vocabulary.words.get(n))]
        if words:
            self.view.note("structure-words", f"{few(words)}: no model has a row for these words", "tokenizer",
                           "Their rows hold zeros; name better ones by `words`.")  # fmt: skip

    # --- what is done

    def _keep(self, home: str) -> Iterator[Substep]:
        """The steps that keep the tables as they are, for models whose turn comes later."""
        for alias, model in self.models.items():
            for part in self.tables(model):
                for name in part.kin.numbers.values():
                    yield Substep("copy", {"from": to(alias, re.escape(name)), "to": to(home, f"{alias}/{name}")})

    @property
    def _source(self) -> str:
        """The alias whose special words the models get."""
        return self.asked.models[0] if self.files or self.asked.tokenizer is None else self.asked.tokenizer

    def _kept(self, model: Described) -> KeptWords:
        places = self.places[model.alias]
        return KeptWords([n for n in places if n is not None], [at for at, n in enumerate(places) if n is not None])

    def _configure(self, model: Described) -> Iterator[Edit]:
        """Give a model the tokenizer."""
        yield from renumber_generation(self.view, model, self._kept(model), self._source)
        yield MakeTokenizer(model.alias, self.files) if self.files else TakeTokenizer(model.alias, self._source)


class _Table(NamedTuple):
    """A table of a model that gets other rows. `home`: the alias with all tables as they were, `work`: for parts."""

    view: View
    models: Mapping[str, Described]
    alias: str
    name: str
    axis: int
    home: str
    work: str

    def steps(self, wanted: Sequence[Rows]) -> Iterator[Substep]:
        """The steps: rows of others are put behind its own ones, then all are taken in their order."""
        groups: dict[tuple[str, ...], dict[Rows, int]] = {}
        for row in wanted:
            if (row and row[0].alias != self.alias) or len(row) > 1:
                found = groups.setdefault(tuple(each.alias for each in row), {})
                found.setdefault(row, len(found))
        count = self.models[self.alias].size(WORDS)
        starts: dict[tuple[str, ...], int] = {}
        parts: list[str] = []
        for number, (aliases, rows) in enumerate(groups.items()):
            starts[aliases], count = count, count + len(rows)
            parts.append(f"{self.alias}/{number}/{self.name}")
            yield from self._gather(parts[-1], aliases, list(rows))
        if parts:
            joined = [
                to(self.home, re.escape(f"{self.alias}/{self.name}")),
                *(to(self.work, re.escape(p)) for p in parts),
            ]
            yield Substep("delete", {"target": to(self.alias, re.escape(self.name))})
            yield Substep("concat", {"from": joined, "to": to(self.alias, self.name), "dim": self.axis})
        if any(not row for row in wanted):
            shape = [count + 1 if at == self.axis else -1 for at in range(self._rank)]
            yield Substep("pad_", {"target": to(self.alias, re.escape(self.name)), "shape": shape})
        taken = [
            count if not row else row[0].number if row == (Row(self.alias, row[0].number),)
            else starts[key := tuple(each.alias for each in row)] + groups[key][row]
            for row in wanted
        ]  # fmt: skip
        yield Substep("take_", {"target": to(self.alias, re.escape(self.name)), "indices": taken, "dim": self.axis})

    def pad(self, more: int) -> Iterator[Substep]:
        """The steps that put rows of no word behind the others, with their mean."""
        if more:
            mean = f"repeat(mean(w, axis={self.axis}, keepdims=True), {more}, axis={self.axis})"
            yield Substep("compute", {"from": {"w": to(self.alias, re.escape(self.name))},
                                      "expr": f"concat([w, {mean}], axis={self.axis})",
                                      "to": to(self.alias, r"\g<0>")})  # fmt: skip

    @property
    def _rank(self) -> int:
        return len(self.view.fetch(self.alias, self.name).aval.shape)

    def _gather(self, part: str, aliases: Sequence[str], rows: Sequence[Rows]) -> Iterator[Substep]:
        """The steps that put rows of others, or their means, into one table."""
        read: dict[str, object] = {}
        for at, alias in enumerate(aliases):
            if self.name not in self.view.names(alias):
                message = f"'{alias}' has no '{self.name}', from which '{self.alias}' would get rows"
                raise Refusal("tensor-missing", message, key="models",
                              hint=f"Give it one, a copy of its other table: `untie: {{alias: {alias}}}`.")  # fmt: skip
            name = part if len(aliases) == 1 else f"{part}/{at}"
            yield Substep("take", {"from": to(self.home, re.escape(f"{alias}/{self.name}")), "to": to(self.work, name),
                                   "indices": [row[at].number for row in rows], "dim": self.axis})  # fmt: skip
            wanted = self.view.fetch(self.alias, self.name).aval.dtype
            if self.view.fetch(alias, self.name).aval.dtype != wanted:
                yield Substep("cast_", {"target": to(self.work, re.escape(name)), "to": wanted.name})
            read[f"x{at}"] = to(self.work, re.escape(name) if at == 0 else name)
        if len(aliases) > 1:
            total = " + ".join(read)
            yield Substep("compute", {"from": read, "expr": f"({total}) / {len(aliases)}", "to": to(self.work, part)})
