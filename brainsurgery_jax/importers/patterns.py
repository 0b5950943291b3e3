"""Patterns that select given names of a checkpoint, as short as a person would write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

_LAYER = re.compile(r"(?P<stack>.+?)\.(?P<at>\d+)\.(?P<rest>.+)")


class Stack(NamedTuple):
    """The layers of a model: the prefix of their names, and their number."""

    prefix: str
    size: int

    def place(self, name: str) -> tuple[int, str] | None:
        """The layer's number and the rest of the name; None for a tensor outside of layers."""
        found = _LAYER.fullmatch(name)
        return (int(found["at"]), found["rest"]) if found and found["stack"] == self.prefix else None


def stacks(names: Iterable[str]) -> list[Stack]:
    """Every stack of layers, the longest first."""
    found: dict[str, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, names)):
        found[match["stack"]] = max(found.get(match["stack"], 0), int(match["at"]) + 1)
    return sorted((Stack(*item) for item in found.items()), key=lambda stack: -stack.size)


def shift_name(name: str, stack: Stack, by: int) -> str:
    """The name of the same tensor `by` layers further; one outside of layers stays as it is."""
    place = stack.place(name) if by else None
    return name if place is None else f"{stack.prefix}.{place[0] + by}.{place[1]}"


def numbers(chosen: Collection[int], count: int) -> str:
    """A regex for some of the numbers below `count`."""
    if len(set(chosen)) == count:
        return r"\d+"
    tens: dict[str, list[str]] = {}
    for number in sorted(set(chosen)):
        tens.setdefault(str(number)[:-1], []).append(str(number)[-1])
    parts: list[str] = []
    for digits, group in groupby(tens.items(), key=lambda item: _any_of(item[1])):
        heads = [head for head, _ in group]
        if all(len(head) == 1 for head in heads):
            parts.append(_any_of(heads) + digits)
        else:
            parts += [head + digits for head in heads]
    return "|".join(parts)


def _any_of(digits: Sequence[str]) -> str:
    if len(digits) == 10:
        return r"\d"
    if len(digits) == 1:
        return digits[0]
    run = len(digits) > 2 and int(digits[-1]) - int(digits[0]) == len(digits) - 1
    return f"[{digits[0]}-{digits[-1]}]" if run else f"[{''.join(digits)}]"


def choose(chosen: Collection[str], among: Collection[str], filters: Sequence[str]) -> str | None:
    """A regex that selects `chosen` among `among`, by texts that names contain or lack; None if there is none."""
    wanted = set(chosen)
    for pattern in _candidates(filters):
        if {name for name in among if re.fullmatch(pattern, name)} == wanted:
            return pattern
    return None


def _candidates(filters: Sequence[str]) -> Iterator[str]:
    texts = [re.escape(text) for text in filters]
    yield ".*"
    for text in texts:
        yield f".*{text}.*"
    if len(texts) > 1:
        yield f".*({'|'.join(texts)}).*"
    for upto in range(1, len(texts) + 1):
        without = f"(?!.*({'|'.join(texts[:upto])}))" if upto > 1 else f"(?!.*{texts[0]})"
        yield f"{without}.*"
        for text in texts[upto:]:
            yield f"{without}.*{text}.*"


def any_of_names(names: Iterable[str]) -> str:
    """A regex for exactly these names."""
    return "|".join(map(re.escape, names))


def rectangles(places: Mapping[int, Collection[str]]) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    """The selected names by layer, merged for layers with equal selections."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for at, rests in places.items():
        alike.setdefault(tuple(sorted(rests)), []).append(at)
    yield from ((tuple(layers), rests) for rests, layers in alike.items())


def selections(
    chosen: Collection[str], among: Collection[str], stack: Stack | None, filters: Sequence[str], *, renumber: bool
) -> Iterator[str]:
    """Regexes that together select `chosen` among `among`. With `renumber`, those for layers capture the groups `i` and
    `rest`."""
    if not renumber and (pattern := choose(chosen, among, filters)) is not None:
        yield pattern
        return
    places = {name: stack.place(name) for name in among} if stack else {}
    outside = [name for name in chosen if places.get(name) is None]
    if outside:
        yield _outside(outside, places, stack) or choose(outside, among, filters) or any_of_names(outside)
    inside: dict[int, list[str]] = {}
    for at, rest in filter(None, (places.get(name) for name in chosen)):
        inside.setdefault(at, []).append(rest)
    for layers, rests in rectangles(inside):
        assert stack is not None
        others = {place[1] for place in places.values() if place is not None and place[0] in layers}
        number = numbers(layers, stack.size)
        rest = choose(rests, others, filters) or any_of_names(rests)
        prefix = re.escape(stack.prefix)
        if renumber:
            yield rf"{prefix}\.(?P<i>{number})\.(?P<rest>{rest})"
        else:
            yield rf"{prefix}\.{_group(number)}\.{_group(rest)}"


def _outside(chosen: Collection[str], places: Mapping[str, object], stack: Stack | None) -> str | None:
    """A regex for all names outside of layers, if exactly these are selected and it is shorter than a list."""
    everything = {name for name, place in places.items() if place is None}
    return rf"(?!{re.escape(stack.prefix)}\.).*" if stack and everything == set(chosen) and len(chosen) > 1 else None


def _group(pattern: str) -> str:
    return f"({pattern})" if "|" in pattern and not pattern.startswith("(?!") else pattern
