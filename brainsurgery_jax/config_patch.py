"""What a plan changes in a JSON config, as a value: a part to lift out, keys to remove, values to set. Pure functions.

The op `config`, the key `config` of an output, and the option `config` of PEFT adapters write such a change. It is
written as the values to set, `{num_hidden_layers: 9}`, or in full, as a mapping of nothing but `from`, `remove` and
`patch`: `{from: text_config, remove: [auto_map], patch: {num_hidden_layers: 9}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean

DTYPE_KEYS = ("dtype", "torch_dtype")
"""What config.json calls the dtype of the weights."""

GENERATION_CONFIG = "generation_config.json"
"""The file that says how text is generated: it names special words by their numbers, as config.json does."""

KEYS = ("from", "remove", "patch")
"""The keys of a change that is written in full."""

FULL_FORM = (
    "A change in full is `config: {from: PART, remove: [KEY, ...], patch: {KEY: VALUE}}`, or some of these three. "
    "A key of the config that has such a name is set by `patch`."
)


class Change(NamedTuple):
    """A change to a config. First `part` is lifted out (empty: the whole), then keys are removed, then values set."""

    part: str = ""
    remove: tuple[str, ...] = ()
    patch: Mapping[str, object] = {}


def find_setting(settings: object, path: str) -> object:
    """The value in a config under keys and numbers of entries with dots between them; None if it is missing."""
    for key in path.split("."):
        if isinstance(settings, list) and key.isdecimal() and int(key) < len(settings):
            settings = settings[int(key)]
        else:
            settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def setting_paths(settings: object, before: str = "") -> Iterator[str]:
    """What `find_setting` finds."""
    pairs = settings.items() if isinstance(settings, Mapping) else ()
    for key, value in enumerate(settings) if isinstance(settings, list) else pairs:
        yield f"{before}{key}"
        yield from setting_paths(value, f"{before}{key}.")


def read_change(value: Mapping[str, object]) -> Change:
    """The change that a plan writes. Raises ValueError for a change in full that is not one."""
    if not value or not set(value) <= set(KEYS):
        return Change(patch=value)
    part, remove, patch = value.get("from", ""), value.get("remove", []), value.get("patch", {})
    if not isinstance(part, str):
        raise ValueError(f"from: expected the name of a part of the config, got {part!r}")
    removed = [remove] if isinstance(remove, str) else remove
    if not isinstance(removed, list) or not all(isinstance(key, str) for key in removed):
        raise ValueError(f"remove: expected a list of keys, got {remove!r}")
    if not isinstance(patch, Mapping):
        raise ValueError(f"patch: expected a mapping of keys to values, got {patch!r}")
    return Change(part, tuple(removed), patch)


def write_change(change: Change) -> dict[str, object]:
    """The change as a plan writes it; the values alone where that says the same."""
    full = {"from": change.part, "remove": list(change.remove), "patch": dict(change.patch)}
    needed = {key: value for key, value in full.items() if value}
    return dict(change.patch) if set(needed) <= {"patch"} and not set(change.patch) <= set(KEYS) else needed


def read_for(value: Mapping[str, object], base: Mapping[str, object]) -> Change:
    """The change that a plan writes for a config. Raises Refusal where it is half in full and half not."""
    mixed = [key for key in KEYS if key in value and not set(value) <= set(KEYS) and key not in base]
    if mixed:
        others = ", ".join(f"'{key}'" for key in value if key not in KEYS)
        message = f"'{mixed[0]}' stands beside {others}: a change in full has no keys but {', '.join(KEYS)}"
        hint = "Put the values to set under `patch`: `config: {remove: [...], patch: {KEY: VALUE}}`."
        raise Refusal("output-config", message, key="config", hint=hint)
    return read_change(value)


def merge_changes(first: Change, patch: Mapping[str, object]) -> Change:
    """A change that also sets what a patch sets."""
    return first._replace(patch=patch_mapping(first.patch, patch))


def apply_change(config: Mapping[str, object], change: Change) -> dict[str, object]:
    """The config after a change. Raises Refusal for a part or a key that it does not have; `key` of the refusal is
    `from` or `remove`."""
    made = _part(config, change.part) if change.part else config
    for key in change.remove:
        made = _without(made, key)
    return patch_mapping(made, change.patch)


def patch_value(base: object, patch: object) -> object:
    """A config with other values in it: mappings key by key, anything else replaced."""
    if not (isinstance(base, Mapping) and isinstance(patch, Mapping)):
        return patch
    return patch_mapping(base, patch)


def patch_mapping(base: Mapping[str, object], patch: Mapping[str, object]) -> dict[str, object]:
    """The same of two mappings."""
    return {**base, **{key: patch_value(base.get(key, {}), value) for key, value in patch.items()}}


def find(config: object, key: str) -> tuple[str, ...] | None:
    """The place of a key such as `a.b`: `b` in the part `a`, or a key with a dot in it; None if there is none."""
    if not isinstance(config, Mapping):
        return None
    if key in config:
        return (key,)
    for head, rest in _splits(key):
        if head in config and (inner := find(config[head], rest)) is not None:
            return head, *inner
    return None


def _splits(key: str) -> Iterator[tuple[str, str]]:
    yield from ((key[:at], key[at + 1 :]) for at, letter in enumerate(key) if letter == ".")


def _part(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    place = find(config, key)
    found = config if place is not None else None
    for step in place or ():
        found = found[step]  # type: ignore[index]
    if not isinstance(found, Mapping):
        parts = [name for name, value in config.items() if isinstance(value, Mapping)]
        problem = f"the config has no part '{key}'" + (", which is a single value" if place else "")
        known = f"Its parts: {', '.join(parts)}." if parts else "It has no parts."
        raise Refusal("output-config", f"{problem}.{did_you_mean(key, parts)}", key="from", hint=known)
    return found


def _without(config: Mapping[str, object], key: str) -> dict[str, object]:
    place = find(config, key)
    if place is None:
        near = did_you_mean(key, list(_paths(config)))
        problem = f"the config has no key '{key}'.{near}"
        raise Refusal("output-config", problem, key="remove", hint="Leave it out of `remove`, or correct it.")
    return _prune(config, place)


def _prune(config: Mapping[str, object], place: tuple[str, ...]) -> dict[str, object]:
    head, *rest = place
    if not rest:
        return {key: value for key, value in config.items() if key != head}
    inner = config[head]
    assert isinstance(inner, Mapping)
    return {**config, head: _prune(inner, tuple(rest))}


def _paths(config: Mapping[str, object]) -> Iterator[str]:
    for key, value in config.items():
        yield key
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in _paths(value))


def differing_keys(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    """The keys of two configs that differ, with dots to those of inner mappings."""
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from (f"{key}.{inner}" for inner in differing_keys(old, new))
        elif key not in before or key not in after or not is_same(old, new):
            yield key


def is_same(a: object, b: object) -> bool:
    """Whether two values are the same in JSON, where true is not 1, and 16 is 16.0."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


class Doubt(NamedTuple):
    """What may not be meant in a change: the keys that lead to it in the values to set, and what to say of it."""

    place: tuple[str, ...]
    message: str
    hint: str


def find_doubts(base: Mapping[str, object], change: Change, file: str) -> Iterator[Doubt]:
    """Doubts about a change to the config in a file: keys that look misspelt, and parts that are set to null."""
    whole = apply_change(base, change._replace(patch={}))
    for place, near in _look_alikes(whole, change.patch, ()):
        message = f"'{'.'.join(place)}' is added: {file} has no such key. Did you mean '{near}'?"
        yield Doubt(place, message, "A key that is to be new is right as it is.")
    for place in _find_emptied(whole, change.patch, ()):
        key = ".".join(place)
        message = f"'{key}' is set to null, and stays in {file}: loaders may ask for its parts"
        yield Doubt(place, message, f"To remove it write `config: {{remove: [{key}]}}`.")


def _look_alikes(
    base: object, patch: Mapping[str, object], place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    if not isinstance(base, dict):
        return
    for key, value in patch.items():
        if key in base and isinstance(value, Mapping):
            yield from _look_alikes(base[key], value, (*place, key))
        elif key not in base and (near := next((known for known in base if _is_like(key, known)), "")):
            yield (*place, key), near


def _is_like(key: str, known: str) -> bool:
    """Whether two keys have the same words but for letters: `bos_token_id` is not misspelt for `eos_token_id`."""
    words, others = key.lower().split("_"), known.lower().split("_")
    if len(words) != len(others):
        return "".join(words) == "".join(others)
    pairs = zip(words, others, strict=True)
    return all(a == b or (min(len(a), len(b)) > 3 and bool(did_you_mean(a, [b]))) for a, b in pairs)


def _find_emptied(base: object, patch: Mapping[str, object], place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys that a patch sets to null, and that hold a mapping."""
    if not isinstance(base, dict):
        return
    for key, value in patch.items():
        if isinstance(base.get(key), dict):
            if value is None:
                yield (*place, key)
            elif isinstance(value, Mapping):
                yield from _find_emptied(base[key], value, (*place, key))
