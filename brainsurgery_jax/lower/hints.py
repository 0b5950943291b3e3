"""Hints for names that do not exist or collide: where to look, and what may have been meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import Refusal, did_you_mean, nearest_word, worded
from brainsurgery_jax.lower.state import Draft, pattern_of
from brainsurgery_jax.op import Op, TensorOp
from brainsurgery_jax.protocol import NO_MATCH
from brainsurgery_jax.select import Index, Pattern, Ref, RefError, SliceSpec, compile_pattern, kind_of, shown
from brainsurgery_jax.store.key_paths import BoxKey, Path
from brainsurgery_jax.wording import few

_ONE_COLON = re.compile(r"(.*[^:]):(\[[-\d:, ]*\])")
_NO_COLON = re.compile(r"(.*[^:\\*+?.])(\[(?!.*\d-)[-\d:, ]+\])")  # not `[0-9]`, nor a class behind a wildcard


def of_pattern(text: str, space: Draft, tokens: Sequence[str] = (), alias: str = "") -> str:
    """The hint for a pattern (or a list of `tokens`) that looks as if another syntax was meant. `alias`: the prefix
    that names need here."""
    plain = text.replace("\\", "")
    if text in space.names and not tokens:
        return f"In a pattern special characters need a backslash: '{alias}{_escape(text)}'."
    if (sliced := _ONE_COLON.fullmatch(text)) is not None:
        return f"A slice is set off by two colons: '{alias}{sliced[1]}::{sliced[2]}'."
    if (sliced := _NO_COLON.fullmatch(text)) is not None and compile_pattern(sliced[1]).matches(space.names):
        return f"A slice is set off by '::': '{alias}{sliced[1]}::{sliced[2]}'."
    if any(token in space.names or "." in token for token in tokens):
        return "A list is one name in parts, such as [h, '0', bias]; for several names write 'one|another'."
    if any(plain in name for name in space.names):
        wide = f".*{text}.*" if tokens or _matches(f".*{text}.*", space.names) else f".*{_escape(plain)}.*"
        return f"A pattern must match the whole name; for names that contain it write '{wide}'."
    return ""


def _matches(pattern: str | tuple[str, ...], names: Collection[str]) -> bool:
    """Whether a text is a pattern that matches any of the names."""
    try:
        return bool(compile_pattern(pattern).matches(names))
    except RefError:
        return False


def _escape(name: str) -> str:
    """The pattern that matches one name only."""
    return _SPECIAL.sub(r"\\\g<0>", name)


_WILD = r"\(?\.[*+]\??\)?"
_DOT = r"(?:\\?\.(?![*+]))?"
_BETWEEN = re.compile(rf"(?P<head>{_WILD}{_DOT})?(?P<core>.*?)(?P<tail>{_DOT}{_WILD})?", re.DOTALL)
_SPECIAL = re.compile(r"[][.\\(){}*+?|^$]")


def nearest(pattern: str | tuple[str, ...], names: Collection[str]) -> str:
    """`" Did you mean ...?"` for a pattern that matches nothing: the nearest name, or with `.*` at its ends the nearest
    part of a name."""
    head, core, tail = _ends(pattern)
    length = core.count(".") + 1
    if core and (head or tail):
        parts = dict.fromkeys(_parts(names, length, anywhere=bool(head and tail), at_end=bool(head)))
        if (near := nearest_word(core, parts)) is not None:
            meant = _with_ends(pattern, head, near, tail)
            if _matches(meant, names):
                return f" Did you mean {shown(meant)}?"
    if not isinstance(pattern, str):
        return did_you_mean(".".join(pattern), names)
    near = nearest_word(pattern.replace("\\", ""), names)
    if near is None:
        return ""
    return f" Did you mean '{near if _matches(near, (near,)) else _escape(near)}'?"


def _ends(pattern: str | tuple[str, ...]) -> tuple[str, str, str]:
    """The wildcards at the beginning and end of a pattern, and the text between them."""
    if isinstance(pattern, str):
        found = _BETWEEN.fullmatch(pattern)
        assert found is not None, "every text fits"
        return found["head"] or "", found["core"].replace("\\", ""), found["tail"] or ""
    head, tail = ((token if token.startswith("*") else "") for token in (pattern[0], pattern[-1]))
    return head, ".".join(pattern[bool(head) : len(pattern) - bool(tail)]), tail


def _with_ends(pattern: str | tuple[str, ...], head: str, name: str, tail: str) -> str | tuple[str, ...]:
    """The same pattern with another text between its wildcards."""
    if isinstance(pattern, str):
        return head + _escape(name) + tail
    return tuple(filter(None, (head, *name.split("."), tail)))


def _parts(names: Iterable[str], length: int, *, anywhere: bool, at_end: bool) -> Iterator[str]:
    """Runs of this many segments of names: at their end, at their start, or anywhere."""
    for name in names:
        segments = name.split(".")
        last = len(segments) - length
        if last >= 0:
            starts = range(last + 1) if anywhere else (last,) if at_end else (0,)
            yield from (".".join(segments[at : at + length]) for at in starts)


def of_kind(dtypes: Iterable[DType]) -> str:
    """The hint for a pattern whose `kind` excludes all its matches."""
    counts = Counter(map(kind_of, dtypes))
    found = [f"{n:,} tensor{'s' * (n != 1)} of kind {kind}" for kind, n in counts.most_common()]
    return f"Without `kind` it matches {' and '.join(found)}."


def of_destination(op: Op | None, key: str) -> str:
    """The hint for an op that writes into an existing tensor, if there is none of that name."""
    if not isinstance(op, TensorOp) or op.form.dest != "existing" or key not in op.form.writes:
        return ""
    others = ", or `extra: ignore` to leave it out" if op.form.fills else ", or use `compute`"
    return f"`{op.name}` writes into a tensor that is there: `copy` one to that name first{others}."


def of_box(pattern: Pattern, paths: Mapping[str, Path]) -> str:
    """The hint for a pattern that names the key of a box of Flax, which names leave out; empty if it names none."""
    ends = ((name, path[-1]) for name, path in paths.items() if path)  # a tree may be a leaf, with no path
    boxed = {f"{name}.{end}": end for name, end in ends if isinstance(end, BoxKey)}
    if not pattern.matches(boxed):
        return ""
    box = next(iter(boxed.values()))
    return f"Names leave out the key that variables of Flax add at the end, '.{box}': leave it out here, too."


def of_empty(spec: SliceSpec, index: Index) -> tuple[str, str]:
    """The message and hint for a slice that selects no element of a tensor that has some."""
    axis = next(axis for axis, start in enumerate(index.starts) if start == index.stops[axis])
    hint = f"Dimension {axis} has the indices 0 to {index.source[axis] - 1}; a range ends before its second number."
    return f"slice {spec} selects nothing of shape {list(index.source)}", hint


def list_names(names: Sequence[str], most: int = 4) -> str:
    """The first names, quoted, and how many more there are."""
    return few([f"'{name}'" for name in names], most)


def count(space: Draft) -> str:
    """The number of tensors, in words."""
    return f"{len(space.names):,} tensor" + "s" * (len(space.names) != 1)


def where(space: Draft) -> str:
    """The command that lists the names."""
    if origin := space.extras.origin:
        look = worded(shell=f"brainsurgery-jax inspect {origin}", python=f"list(bs.open({origin!r}))")
        return f"`{look}` lists the names that it started with."
    return "A step `dump: {}` before this one lists the names."


def refuse_no_match(ref: Ref, key: str, space: Draft, default_alias: str | None) -> Refusal:
    """The refusal of a pattern that matches nothing."""
    text = ref.name if isinstance(ref.name, str) else ".".join(ref.name)
    tokens = () if isinstance(ref.name, str) else ref.name
    near = nearest(ref.name, space.names)
    alias = "" if ref.alias == default_alias else f"{ref.alias}::"
    hint = of_box(pattern_of(ref.name), space.leaves.paths) or of_pattern(text, space, tokens, alias)
    hint = hint or where(space)
    kind = "" if ref.kind is None else f" of kind {ref.kind}"
    if kind and (others := pattern_of(ref.name).matches(space.names)):
        near, hint = "", of_kind([space.names[name].aval.dtype for name, _ in others])
    message = f"no tensor{kind} matches {shown(ref.name)} in '{ref.alias}' ({count(space)}).{near}"
    return Refusal(NO_MATCH, message, key=key, hint=hint)


def refuse_collisions(sources: Sequence[str], names: Sequence[str], key: str) -> None:
    """Refuse templates that give two tensors one name."""
    if len(set(names)) == len(names):
        return
    first: dict[str, str] = {}
    for source, name in zip(sources, names, strict=True):
        if name in first:
            hint = "Keep what tells them apart in a capture: `(...)` in the pattern, `\\1` in the template."
            if re.search(r"\{\d\}", name):
                hint = "A capture is written \\1, not {1}."
            raise Refusal(
                "names-collide", f"'{first[name]}' and '{source}' would both become '{name}'", key=key, hint=hint
            )
        first[name] = source
