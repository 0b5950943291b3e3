"""Errors in the names that a plan says: patterns, numbers of layers, slices, aliases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from brainsurgery_jax.auditing.cases import Case, Mutant, Mutator, leaves, put
from brainsurgery_jax.auditing.places import NUMBER, WORD, Reference, matches, names_of, references


def _in_patterns(edit: Callable[[str, tuple[str, ...]], Iterable[str]]) -> Callable[[Case], Iterator[Mutant]]:
    """Mutants with another pattern in one reference. `edit`: the other patterns, given the names that there are."""

    def plant(case: Case) -> Iterator[Mutant]:
        for ref in references(case):
            for new in edit(ref.pattern, names_of(case, ref.alias)):
                yield Mutant(_tell(ref, f"{ref.alias}{new}{ref.slice}"), ref.put(case, pattern=new))

    return plant


def _tell(ref: Reference, new: str) -> str:
    return f"step {ref.step + 1}: `{ref.text}` -> `{new}`"


def _misspell(pattern: str, names: tuple[str, ...]) -> Iterator[str]:
    words = sorted(WORD.finditer(pattern), key=lambda m: -len(m[0]))
    if words and len(words[0][0]) > 2:
        at = words[0].start()
        yield f"{pattern[:at]}{pattern[at + 1]}{pattern[at]}{pattern[at + 2 :]}"


def _name_another(pattern: str, names: tuple[str, ...]) -> Iterator[str]:
    """The pattern with one word replaced by another that makes names which exist."""
    own = matches(pattern, names)
    if not own:
        return
    parts = own[0].split(".")
    near = [other.split(".") for other in names if other.count(".") == len(parts) - 1]
    for word in WORD.finditer(pattern):
        if word[0] not in parts:
            continue
        at = parts.index(word[0])
        others = dict.fromkeys(p[at] for p in near if p[at] != word[0] and not p[at].isdecimal()
                               and p[:at] + p[at + 1 :] == parts[:at] + parts[at + 1 :])  # fmt: skip
        for other in others:
            new = f"{pattern[: word.start()]}{other}{pattern[word.end() :]}"
            if matches(new, names):
                yield new
                break


def _reach_fewer(pattern: str, names: tuple[str, ...]) -> Iterator[str]:
    own = set(matches(pattern, names))
    alternatives = re.finditer(r"\|[\w.\\]+(?=\))", pattern)
    shorter = [pattern[: m.start()] + pattern[m.end() :] for m in alternatives]
    tried = [pattern.replace(r"\d+", r"\d", 1), pattern.replace(r"\d+", r"[1-9]\d*", 1), *shorter]
    yield from (new for new in dict.fromkeys(tried) if set() < set(matches(new, names)) < own)


def _reach_more(pattern: str, names: tuple[str, ...]) -> Iterator[str]:
    own = set(matches(pattern, names))
    for word in WORD.finditer(pattern):
        new = f"{pattern[: word.start()]}.+{pattern[word.end() :]}"
        if own and own < set(matches(new, names)):
            yield new


def _move_layer(pattern: str, names: tuple[str, ...]) -> Iterator[str]:
    for number in NUMBER.finditer(pattern):
        for other in (int(number[0]) + 1, int(number[0]) - 1):
            new = f"{pattern[: number.start()]}{other}{pattern[number.end() :]}"
            if other >= 0 and (matches(new, names) or "\\" in pattern):
                yield new
                break


_BOUNDS = re.compile(r"(?<=[\[,:\s])\d+(?=[\],:\s])")


def _slices(move: Callable[[list[int]], list[int]]) -> Callable[[Case], Iterator[Mutant]]:
    def plant(case: Case) -> Iterator[Mutant]:
        for ref in references(case):
            bounds = [int(m[0]) for m in _BOUNDS.finditer(ref.slice)]
            if bounds:
                moved = iter(move(bounds))
                new = _BOUNDS.sub(lambda _, moved=moved: str(next(moved)), ref.slice)
                if new != ref.slice:
                    yield Mutant(_tell(ref, f"{ref.alias}{ref.pattern}{new}"), ref.put(case, slice=new))

    return plant


def _shift_by_block(bounds: list[int]) -> list[int]:
    width = max(bounds) - min(bounds)
    return [bound + width for bound in bounds]


def _everywhere(plant: Callable[[Case], Iterable[Mutant]]) -> Callable[[Case], Iterator[Mutant]]:
    """The same replacement of a text in every step, asserts as well: what a wrong variable does."""

    def replaced(case: Case) -> Iterator[Mutant]:
        for mutant in plant(case):
            found = re.fullmatch(r"step \d+: `(.*)` -> `(.*)`", mutant.what)
            if found is None:
                continue
            old, new = _difference(found[1], found[2])
            steps = tuple(_replace_text(step, old, new) for step in case.steps)
            if steps != mutant.case.steps:
                yield Mutant(f"the whole plan: `{old}` -> `{new}`", case._replace(steps=steps))

    return replaced


def _difference(old: str, new: str) -> tuple[str, str]:
    """What differs of two texts, with the separators around it."""
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    stop = next((i for i, (a, b) in enumerate(zip(reversed(old), reversed(new), strict=False)) if a != b), 0)
    start, stop = max(start - 2, 0), max(stop - 2, 0)
    return old[start : len(old) - stop], new[start : len(new) - stop]


def _replace_text(step: object, old: str, new: str) -> object:
    for path, leaf in leaves(step):
        if isinstance(leaf, str) and old in leaf:
            step = put(step, path, leaf.replace(old, new))
    return step


def _confuse_alias(case: Case) -> Iterator[Mutant]:
    aliases = [f"{alias}::" for alias, _ in case.inputs]
    for ref in references(case):
        if ref.alias in aliases and len(aliases) > 1:
            other = aliases[(aliases.index(ref.alias) + 1) % len(aliases)]
            yield Mutant(_tell(ref, f"{other}{ref.pattern}{ref.slice}"), ref.put(case, alias=other))


def _write_another_alias(case: Case) -> Iterator[Mutant]:
    aliases = [alias for alias, _ in case.inputs]
    for at, output in enumerate(case.outputs):
        own = output.get("alias") if isinstance(output, dict) else None
        for other in aliases:
            if own is not None and other != own:
                changed = (*case.outputs[:at], {**output, "alias": other}, *case.outputs[at + 1 :])
                yield Mutant(f"output: `alias: {own}` -> `alias: {other}`", case._replace(outputs=changed))


_SWAPS = (("gate_proj", "up_proj"), ("q_proj", "k_proj"), ("k_proj", "v_proj"), ("query", "key"), ("key", "value"),
          ("w1", "w3"), ("lora_A", "lora_B"), ("target_a", "target_b"))  # fmt: skip


def _swap_words(case: Case) -> Iterator[Mutant]:
    """Two parts of a model, each in place of the other in the references of one step."""
    for at in sorted({ref.step for ref in references(case)}):
        own = [ref for ref in references(case) if ref.step == at]
        for one, other in _SWAPS:
            rule = re.compile(rf"(?<![A-Za-z]){one}(?![A-Za-z])|(?<![A-Za-z]){other}(?![A-Za-z])")
            changed = case
            for ref in own[:1]:  # in the first only: in all of them it would be the same step
                new = rule.sub(lambda m, one=one, other=other: other if m[0] == one else one, ref.pattern)
                changed = ref.put(case, pattern=new) if new != ref.pattern else case
            if changed is not case:
                yield Mutant(f"step {at + 1}: `{one}` and `{other}` swapped in `{own[0].text}`", changed)


def _swap_items(case: Case) -> Iterator[Mutant]:
    """The first two references of a list, swapped."""
    for at, op, payload in case.edits():
        for key, value in payload.items():
            if isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value):
                swapped = [value[1], value[0], *value[2:]]
                yield Mutant(f"step {at + 1}: the first two of `{key}` swapped", case.put(at, (op, key), swapped))


NAME_MUTATORS = (
    Mutator("name misspelt", "wrong name", _in_patterns(_misspell)),
    Mutator("name of another tensor that exists", "wrong name", _in_patterns(_name_another)),
    Mutator("pattern reaches too few", "wrong name", _in_patterns(_reach_fewer)),
    Mutator("pattern reaches too many", "wrong name", _in_patterns(_reach_more)),
    Mutator("layer off by one", "off by one", _in_patterns(_move_layer)),
    Mutator("layer off by one, in the whole plan", "off by one", _everywhere(_in_patterns(_move_layer))),
    Mutator("slice off by one", "off by one", _slices(lambda bounds: [b + 1 for b in bounds])),
    Mutator("slice of the next head", "off by one", _slices(_shift_by_block)),
    Mutator("slice of the next head, in the whole plan", "off by one", _everywhere(_slices(_shift_by_block))),
    Mutator("another alias in a reference", "wrong alias", _confuse_alias),
    Mutator("another alias written", "wrong alias", _write_another_alias),
    Mutator("parts swapped in a name", "parts swapped", _swap_words),
    Mutator("parts swapped in a list", "parts swapped", _swap_items),
)
