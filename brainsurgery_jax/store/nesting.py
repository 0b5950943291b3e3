"""Writing tensors back into the containers that they came from, with plain values beside them.

A checkpoint of a trainer is a dict of dicts. Read, its tensors have dotted names; a plan may rename them, delete some
and make others. A name that a tensor had when it was read lies where it lay. Another name goes into the innermost
container whose name it begins with.
"""

from __future__ import annotations

import ast
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.store.base import Nest, Nesting
from brainsurgery_jax.store.key_paths import ListIndex, Path, Spelled, name_of
from brainsurgery_jax.store.torch.pickle_machine import Key, Name, Object

ALL = "all"
"""Of `keep`: every value that is plain."""

_MOST = 1_000_000  # items of values, characters of text counted by thousands
_DEEPEST = 100
_MOST_HASHED = 10_000  # of what a file could make to collide: items of sets, keys that are neither text nor small


class Device(str):
    """A device as torch spells it."""


class NotPlain(Exception):
    """A value is no plain data."""


class SelectedValues(NamedTuple):
    """Values to write beside the tensors, and the names of those that were asked for as all, and are no plain data."""

    values: Mapping[Path, object]
    left_out: tuple[str, ...] = ()


def nest_of(nesting: Nesting, names: Iterable[str], kept: SelectedValues) -> Nest:
    """The places of tensors with these names, beside values. Raises a ValueError that describes a conflict."""
    inner = _inner_containers(nesting)
    paths = {name: nesting.tensors.get(name) or _path_of(name, nesting, inner) for name in names}
    _check(paths, kept.values)
    return Nest(paths, nesting.kinds, kept.values, nesting.order, kept.left_out)


_Inner = Mapping[Path, Mapping[str, str | int]]
"""By container, the containers in it: the key of each, by its text."""


def _inner_containers(nesting: Nesting) -> _Inner:
    inner: dict[Path, dict[str, str | int]] = {}
    for path in nesting.kinds:
        if path:
            inner.setdefault(path[:-1], {})[str(path[-1])] = path[-1]
    return inner


def _path_of(name: str, nesting: Nesting, inner: _Inner) -> Path:
    """The key path of a name that was not read: in the innermost container whose name it begins with."""
    at, segments = nesting.base, name.split(".")
    while True:
        known = inner.get(at, {})
        heads = (end for end in range(len(segments) - 1, 0, -1) if ".".join(segments[:end]) in known)
        if (end := next(heads, None)) is None:
            break
        at, segments = (*at, known[".".join(segments[:end])]), segments[end:]
    numbered = nesting.kinds.get(at) in ("list", "tuple")
    if segments[0].isdecimal() and (numbered or (known and all(isinstance(key, int) for key in known.values()))):
        at, segments = (*at, ListIndex(segments[0]) if numbered else int(segments[0])), segments[1:]
    return (*at, ".".join(segments)) if segments else at


def _check(paths: Mapping[str, Path], values: Mapping[Path, object]) -> None:
    """ValueError where two things lie at one place, or one inside of the other, or under a key that is not known."""
    places: dict[Path, str] = {}
    for name, path in (*paths.items(), *((name_of(path), path) for path in values)):
        if path in places:
            raise ValueError(f"'{name}' and '{places[path]}' would lie at one place")
        places[path] = name
        if odd := [key for key in path if isinstance(key, Spelled)]:
            raise ValueError(f"'{name}' lies under the key {odd[0]}, which is neither text nor an integer")
    for path, name in places.items():
        for end in range(1, len(path)):
            if path[:end] in places:
                raise ValueError(f"'{places[path[:end]]}' is no container, and '{name}' would lie inside of it")


# --- Values -----------------------------------------------------------------------------------------------------------


def select_values(nesting: Nesting, keep: Sequence[str] | str) -> SelectedValues:
    """The values that `keep` selects, as plain data. Raises ValueError for one that is missing or is not a value."""
    names = {name_of(path): path for path in nesting.values}
    wanted = names if keep == ALL else {n: p for n, p in names.items() if any(_is_below(n, k) for k in keep)}
    for key in () if keep == ALL else keep:
        if not any(_is_below(name, key) for name in names):
            raise ValueError(f"'{key}' is no value beside the tensors.{did_you_mean(key, _containers(names))}")
    budget = _Budget()
    values: dict[Path, object] = {}
    left_out: list[str] = []
    for name, path in wanted.items():
        try:
            values[path] = plain(nesting.values[path], budget)
        except NotPlain as bad:
            if keep != ALL:
                raise ValueError(f"'{name}' is no plain data, but {bad}") from bad
            left_out.append(name)
    return SelectedValues(values, tuple(left_out))


def _is_below(name: str, entry: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


def _containers(names: Collection[str]) -> list[str]:
    heads = (name.split(".") for name in names)
    return [*names, *dict.fromkeys(".".join(keys[:end]) for keys in heads for end in range(1, len(keys)))]


class _Budget:
    """How much of values may still be made: a file can share one text among a million places."""

    def __init__(self) -> None:
        self.left = _MOST

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError(f"the values take more than {_MOST:,} items")


def plain(value: Any, budget: _Budget | None = None, depth: int = 0) -> Any:
    """A value of a pickle as plain data: numbers, text, bytes, lists, tuples, sets, dicts. Of what torch puts beside
    them dtypes (ours), devices and sizes. Raises NotPlain for anything else."""
    budget = budget or _Budget()
    budget.spend(1)
    if depth > _DEEPEST:
        raise NotPlain("nested too deeply")
    if value is None or type(value) in (bool, int, float):
        return value
    if type(value) in (str, bytes):
        budget.spend(len(value) // 1000)
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(item, budget, depth + 1) for item in value)
    if type(value) is dict:
        return _entries(value, budget, depth)
    if isinstance(value, DType):
        return value
    if not isinstance(value, Object):
        raise NotPlain(f"'{value}'" if isinstance(value, Name) else f"a {type(value).__name__}")
    made = _PLAIN.get(value.kind) if isinstance(value.kind, Name) else None
    if made is None or type(value.given) is not tuple or not (value.state is None or value.entries is not None):
        raise NotPlain(f"an object of '{value}'")
    given = tuple(plain(item, budget, depth + 1) for item in value.given)
    entries = _entries(value.entries or {}, budget, depth)
    items = [plain(item, budget, depth + 1) for item in value.items or ()]
    try:
        return made(given, entries, items)
    except (TypeError, ValueError, LookupError) as bad:
        raise NotPlain(f"an object of '{value}'") from bad


def _entries(entries: Mapping[object, object], budget: _Budget, depth: int) -> dict[object, object]:
    if sum(isinstance(key, Key) for key in entries) > _MOST_HASHED:
        raise NotPlain("a large dict with keys that are no text")
    return {_key(key): plain(item, budget, depth + 1) for key, item in entries.items()}


def _key(key: object) -> object:
    """A key of a dict as it is in Python; a tuple stands in a pickle machine as text."""
    if not isinstance(key, Key | Name | Object):
        return key
    try:
        return ast.literal_eval(key.text) if isinstance(key, Key) else _refuse(key)
    except (ValueError, SyntaxError) as bad:
        raise NotPlain(f"a dict with the key '{key}'") from bad


def _refuse(key: Name | Object) -> object:
    raise NotPlain(f"a dict with the key '{key}'")


def _only(make: Callable[..., object]) -> Callable[..., object]:
    """A call with arguments alone."""
    return lambda given, entries, items: make(*given)


def _bytes(given: tuple[object, ...]) -> bytes:
    """What bytes are made of in a pickle: nothing, themselves, or text of which each character is a byte. Never a
    number, which would make as many."""
    match given:
        case ():
            return b""
        case (bytes() as raw,):
            return raw
        case (str() as text, "latin1" | "latin-1"):
            return text.encode("latin1")
    raise ValueError("no bytes")


def _small_set(given: tuple[Any, ...], entries: Any, items: list[Any]) -> set[Any]:
    found = [*items, *(given[0] if given else ())]
    if len(found) > _MOST_HASHED:
        raise ValueError("a large set")
    return set(found)


_PLAIN: Mapping[Name, Callable[..., object]] = {
    Name("collections", "OrderedDict"): lambda given, entries, items: OrderedDict(entries),
    Name("collections", "Counter"): lambda given, entries, items: Counter(entries),
    Name("builtins", "set"): _small_set,
    Name("builtins", "complex"): _only(complex),
    Name("builtins", "bytes"): lambda given, entries, items: _bytes(given),
    Name("builtins", "bytearray"): lambda given, entries, items: bytearray(_bytes(given)),
    Name("_codecs", "encode"): lambda given, entries, items: _bytes(given),
    Name("torch", "device"): _only(lambda kind, *index: Device(":".join(map(str, (kind, *index))))),
}
"""How the objects are made that are plain data: from arguments, entries and items."""


# --- The tree ---------------------------------------------------------------------------------------------------------


def build(nest: Nest, tensors: Mapping[str, Any]) -> Any:
    """The containers with tensors and values in them. A list that has lost items is a dict by their numbers."""
    entries = {nest.paths[name]: tensor for name, tensor in tensors.items()} | dict(nest.values)
    known = [path for path in nest.order if path in entries]
    root = _Container()
    for path in dict.fromkeys((*known, *entries)):
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, _Container())
        node[path[-1]] = entries[path]
    return _convert_containers(root, (), nest.kinds)


class _Container(dict[str | int, Any]):
    """A container on its way, as opposed to a dict that is a value."""


def _convert_containers(node: _Container, path: Path, kinds: Mapping[Path, str]) -> Any:
    inner = {k: _convert_containers(v, (*path, k), kinds) if isinstance(v, _Container) else v for k, v in node.items()}
    kind = kinds.get(path, "dict")
    if kind in ("list", "tuple") and inner.keys() == set(range(len(inner))):
        items = [inner[at] for at in range(len(inner))]
        return items if kind == "list" else tuple(items)
    entries = {int(key) if isinstance(key, ListIndex) else key: value for key, value in inner.items()}
    return OrderedDict(entries) if kind == "OrderedDict" else entries
