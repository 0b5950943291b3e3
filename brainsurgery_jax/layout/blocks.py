"""Blocks: the places of a model's parts, written once. A rule that names a block becomes one rule for each place.

Layers that one library keeps apart and another stacks need the same rules with other names and one more op. A block
`layer` with two places (one `when: scan`, one `unless: scan`) avoids writing them twice: `{layer}` in the names of a
rule is replaced by the place's own `hf` and `to`, its `ops` follow those of the rule, its `ranges` and conditions are
added. `names` of a place fill further braces. A `drop` takes no ops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from brainsurgery_jax.plan.source import List, Map, Node, Scalar, get, plain

PLACE_KEYS = ("hf", "to", "names", "ops", "ranges", "when", "unless")
_SIDES = {"hf": "hf", "to": "to", "drop": "hf"}

Places = Mapping[str, Sequence[Map]]


def expand(rule: Map, blocks: Places) -> Iterator[Map]:
    """The rules that a rule expands to: itself, or one for each place of the block that it names."""
    name = next((b for b in blocks if any(_mentions(get(rule, key), b) for key in _SIDES)), None)
    if name is None:
        yield rule
        return
    for place in blocks[name]:
        yield _apply_place(rule, name, place)


def _mentions(node: Node | None, block: str) -> bool:
    if isinstance(node, List):
        return any(_mentions(item, block) for item in node.items)
    return isinstance(node, Scalar) and f"{{{block}}}" in node.text


def _apply_place(rule: Map, block: str, place: Map) -> Map:
    entries = []
    for key, value in rule.entries:
        if key.text in _SIDES:
            value = _fill(value, _words(block, place, _SIDES[key.text]))
        entries.append((key, value))
    for key in ("ranges",) if get(rule, "drop") is not None else ("ops", "ranges"):
        if (more := get(place, key)) is not None:
            entries = _append(entries, key, more)
    entries += [(key, value) for key, value in place.entries if key.text in ("when", "unless")]
    return Map(tuple(entries), rule.span)


def _words(block: str, place: Map, side: str) -> dict[str, str]:
    own, names = get(place, side), get(place, "names")
    further = {key.text: str(plain(value)) for key, value in names.entries} if isinstance(names, Map) else {}
    return {block: own.text if isinstance(own, Scalar) else "", **further}


def _fill(node: Node, words: Mapping[str, str]) -> Node:
    if isinstance(node, List):
        return List(tuple(_fill(item, words) for item in node.items), node.span)
    if not isinstance(node, Scalar):
        return node
    text = node.text
    for word, meaning in words.items():
        text = text.replace(f"{{{word}}}", meaning)
    return Scalar(text, text, node.span)


def _append(entries: list[tuple[Scalar, Node]], key: str, more: Node) -> list[tuple[Scalar, Node]]:
    """The entries with more ops (or ranges) appended to those of a key."""
    own = next((value for k, value in entries if k.text == key), None)
    kept = [(k, value) for k, value in entries if k.text != key]
    match own, more:
        case List(items), List(others):
            joined: Node = List((*items, *others), own.span)
        case Map(first), Map(second):
            joined = Map((*first, *second), own.span)
        case _:
            joined = more
    return [*kept, (Scalar(key, key, more.span), joined)]
