"""`assert`, with the operators that headers decide and those that combine others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, StrictInt

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Text
from brainsurgery_jax.numerics.compare import alike, unlike
from brainsurgery_jax.numerics.digest import CONTENT, fingerprint
from brainsurgery_jax.op import (
    AssertionKey,
    AssertionsKey,
    DTypeName,
    Partner,
    Pattern,
    Role,
    SlicedPattern,
    assertion,
    sink,
)
from brainsurgery_jax.ops._verdicts import (
    Bound,
    BoundKeys,
    Unmatched,
    absent,
    check_bounds,
    check_pairs,
    judge_bounds,
    list_sorted,
    of_each,
)
from brainsurgery_jax.protocol import (
    NO_MATCH,
    Every,
    Joint,
    Known,
    Negated,
    Pending,
    Some,
    TensorExpr,
    Verdict,
    View,
    settle,
)
from brainsurgery_jax.select import Ref, compile_pattern, compile_template
from brainsurgery_jax.wording import counted, few

Patterns = tuple[Pattern, ...]
_NAMES = Role("pattern", fallback="")


@sink("assert", bare="operator")
def assert_(view: View, *, operator: AssertionKey) -> Verdict:
    """Stop the run, with nothing written, unless a condition holds. See `ops assert` for the operators.

    Example: `assert: {all: [{exists: 'ln_f\\..*'}, {dtype: {of: '.*', is: bfloat16}}]}`
    """
    return operator.ask(view)


_HOLDS = Known(True)


def _compare(label: str, found: object, wanted: object) -> Known:
    return _HOLDS if found == wanted else Known(False, f"{label} is {found}, not {wanted}")


@assertion(bare="target")
def exists(view: View, *, target: SlicedPattern) -> Verdict:
    """At least one tensor matches.

    Example: `assert: {exists: 'ln_f\\.weight'}`
    """
    found = view.match(target, "target")
    shown = few([f"'{name}'" for name in found], 2)
    return (
        Known(True, f"{shown} exist{'s' * (len(found) == 1)}")
        if found
        else absent(view, target)._replace(code="assert-failed")
    )


@assertion()
def count(view: View, *, of: SlicedPattern, is_: Bound) -> Verdict:
    """The number of tensors that match is `is` (0 is possible).

    Example: `assert: {count: {of: 'h\\.\\d+\\.ln_1\\.weight', is: 12}}`
    """
    found = len(view.match(of, "of"))
    return Known(found == is_, "" if found == is_ else f"{_matches(found)} '{of}', not {is_}")


def _matches(number: int) -> str:
    """`1 tensor matches`, `2 tensors match`."""
    return f"{counted(number, 'tensor')} match{'es' if number == 1 else ''}"


@assertion()
def shape(view: View, *, of: SlicedPattern, is_: tuple[StrictInt, ...]) -> Verdict:
    """Every match has exactly this shape (after slicing).

    Example: `assert: {shape: {of: wte.weight, is: [50257, 768]}}`
    """
    return of_each(view, of, lambda i: _compare(f"the shape of '{i.name}'", list(i.expr.aval.shape), list(is_)))


@assertion()
def dtype(view: View, *, of: SlicedPattern, is_: DTypeName) -> Verdict:
    """Every match has this dtype.

    Example: `assert: {dtype: {of: '.*', is: bfloat16}}`
    """
    return of_each(view, of, lambda i: _compare(f"'{i.name}'", str(i.expr.aval.dtype), str(is_)))


@assertion()
def dimensions(view: View, *, of: SlicedPattern, number: BoundKeys) -> Verdict:
    """The number of axes of every match (after slicing) satisfies all bounds.

    Example: `assert: {dimensions: {of: '.*\\.bias', is: 1}}`
    """
    bounds = number.bounds
    check_bounds(bounds)
    return of_each(
        view, of, lambda i: judge_bounds(f"the number of axes of '{i.name}'", len(i.expr.aval.shape), bounds)
    )


@dataclass(frozen=True)
class CountKeys(BoundKeys):
    """Bounds of a count; `at_least` and `at_most` are other names of `ge` and `le`."""

    at_least: Bound | None = None
    at_most: Bound | None = None


def _synonyms(key: str, a: int | None, b: int | None) -> int | None:
    if a is not None and b is not None and a != b:
        raise Refusal("bounds-contradict", f"{key} is given twice, as {a} and {b}", hint="Leave one of them out.")
    return b if a is None else a


def _counter(view: View, of: Ref, which: int, word: str, number: CountKeys) -> Verdict:
    low = _synonyms("at_least", number.ge, number.at_least)
    high = _synonyms("at_most", number.le, number.at_most)
    bounds = number.bounds | {"ge": low, "le": high}
    check_bounds(bounds)

    names = view.match(of, "of")
    if not names:
        return absent(view, of)
    told = {name: judge_bounds(f"the number of {word} of '{name}'", view.count(of.alias, name)[which], bounds)
            for name in names}  # fmt: skip
    broken = [name for name, known in told.items() if not known.holds]
    others = f"; so it is with {list_sorted(broken[1:])}" if broken[1:] else ""
    return Known(False, told[broken[0]].why + others) if broken else Known(True)


@assertion()
def reads(view: View, *, of: SlicedPattern, number: CountKeys) -> Verdict:
    """The number of times that earlier steps read every match satisfies all bounds.

    Example: `assert: {reads: {of: 'wte.weight', at_most: 2}}`
    """
    return _counter(view, of, 0, "reads", number)


@assertion()
def writes(view: View, *, of: SlicedPattern, number: CountKeys) -> Verdict:
    """The number of times that earlier steps wrote every match satisfies all bounds; loading a tensor counts once.

    A tensor that is moved takes its number along. A step on a slice that selects nothing writes nothing.
    Example: `assert: {writes: {of: '.*', is: 1}}`
    """
    return _counter(view, of, 1, "writes", number)


@assertion()
def same_names(view: View, *, left: Annotated[Ref, _NAMES], right: Annotated[Ref, _NAMES]) -> Verdict:
    """Two sets of tensors have the same names. An alias alone stands for all its tensors.

    Example: `assert: {same_names: {left: 'a::h\\..+', right: 'b::h\\..+'}}`
    """
    ours, theirs = (_names(view, ref, key) for ref, key in ((left, "left"), (right, "right")))
    if not ours and not theirs:
        return Known(False, "no tensor matches on either side", code=NO_MATCH)
    sides = ((ours, theirs, "left"), (theirs, ours, "right"))
    parts = [f"only on the {side}: {list_sorted(a - b)}" for a, b, side in sides if a - b]
    return Known(not parts, "names differ, " + "; ".join(parts) if parts else "")


@assertion()
def same_types(view: View, *, left: SlicedPattern, right: Partner, unmatched: Unmatched = None) -> Verdict:
    """Every tensor on the left has the shape and the dtype of the one that `right` names for it. No value is read.

    Example: `assert: {same_types: {left: 'model::.+', right: 'base::\\g<0>'}}`
    """
    return check_pairs(view, left, right, unmatched, lambda here, there, name: unlike(here, there, name) or Known(True))


@assertion(shorthand="of")
def contiguous(view: View, *, of: Pattern, start: Bound = 0) -> Verdict:
    """The numbers that the first group of a pattern captures are all from `start` on, without a hole.

    Example: `assert: {contiguous: 'model\\.layers\\.(\\d+)\\..+'}`
    """
    if not view.match(of, "of"):
        return absent(view, of)
    pattern, matches = view.captures(of, "of")
    first = compile_template("\\1", pattern)
    texts = {first.fill(name, binding): name for name, binding in matches}
    if other := next((name for text, name in texts.items() if not text.isdecimal()), None):
        return Known(False, f"the first group of '{of}' captures no number in '{other}'")
    found = sorted({int(text) for text in texts})
    lost = sorted({*range(start, found[-1] + 1)} - {*found})
    if found[0] < start:
        return Known(False, f"'{of}' has number {found[0]}, below {start}")
    return Known(not lost, f"'{of}' has no number {few([str(n) for n in lost], 4)}, but {found[-1]}" if lost else "")


@assertion()
def tied(view: View, *, left: SlicedPattern, right: Partner) -> Verdict:
    """Every tensor on the left has the bytes of the one that `right` names for it, where both exist; one of them does.

    A tied output table may be left out, as many checkpoints do.
    Example: `assert: {tied: {left: 'lm_head\\.weight', right: model.embed_tokens.weight}}`
    """
    if not view.match(left, "left"):
        there = isinstance(right.name, str) and view.has(right.alias, right.name)
        return Known(True) if there else absent(view, left)

    def compare(here: TensorExpr, there: TensorExpr, name: str) -> Verdict:
        return unlike(here, there, name) or alike(here, there, f"'{name}' is not what it is tied to")

    return check_pairs(view, left, right, "drop", compare)


@assertion("fingerprint")
def check_fingerprint(
    view: View, *, of: Annotated[Text, Field(description="an alias that came from a checkpoint")], is_: Text
) -> Verdict:
    """The tensors that an alias was loaded with are those of this fingerprint: names, shapes, dtypes and every byte.

    `brainsurgery-jax inspect PATH --fingerprint` prints it. It is a BLAKE2b digest of 128 bits, the same for every
    format, number of files and memory budget; all tensors are read. An input may say it, too:
    `inputs: [{path: base/, fingerprint: 'blake2b:...'}]`.
    Example: `assert: {fingerprint: {of: base, is: 'blake2b:6c5e0f5bbd8fb3c1a0c9f1d8a7a3e2f0'}}`
    """
    tensors = view.original(of, "of")
    avals = [(name, str(expr.aval)) for name, expr in tensors.items()]

    def judge(digests: Sequence[bytes]) -> Known:
        found = fingerprint((name, aval, digest) for (name, aval), digest in zip(avals, digests, strict=True))
        return Known(found == is_, "" if found == is_ else f"the fingerprint of '{of}' is {found}, not {is_}")

    return Joint(tuple(Pending((expr,), CONTENT, lambda _: Known(True)) for expr in tensors.values()), judge)


def _names(view: View, ref: Ref, key: str) -> set[str]:
    """The names that a pattern matches, or all of an alias."""
    alias = ref.alias or view.default_alias
    found = set(view.match(replace(ref, alias=alias), key)) if alias else set()
    if not found and isinstance(ref.name, str) and ref.name in view.aliases():
        return set(view.match(Ref(ref.name, ".*", kind=ref.kind), key))
    if not alias:
        known = [*view.aliases()] or ["none"]
        hint = f"Write an alias ({', '.join(known)}), or a pattern with its alias: `{known[0]}::.+`."
        raise Refusal("alias-unknown", f"unknown alias '{ref.name}'", key=key, hint=hint)
    return found


@assertion()
def unchanged(view: View, *, of: Patterns = (), except_: Patterns = ()) -> Verdict:
    """Tensors have the bytes that they were loaded with: those that `of` matches, or all that `except` does not match.

    None of them was changed, removed, renamed or added, nor was any leaf without a tensor. Without either key the
    assert covers all aliases that came from a checkpoint; with `except`, the aliases that it names. Headers decide for
    tensors that no step touched; a tensor that was changed and changed back is compared.
    Example: `assert: {unchanged: {except: ['h\\.5\\.attn\\..+', 'lm_head\\.weight']}}`
    """
    if of and except_:
        raise Refusal("unchanged-keys", "give either `of` or `except`, not both", key="except",
                      hint="`of` says what is unchanged, `except` what may have changed.")  # fmt: skip
    given = of or except_
    aliases = dict.fromkeys(r.alias for r in given) or [a for a in view.aliases() if view.original(a)]
    parts: list[Verdict] = []
    for alias in aliases:
        names = {*view.original(alias), *view.names(alias), *view.tree_gaps(alias)}
        found = {r: set(_match_names(view, r, names)) for r in given if r.alias == alias}
        parts += [absent(view, r) for r in found if of and not found[r]]
        chosen = set().union(*found.values())
        parts.append(_check_kept(view, alias, chosen if of else names - chosen))
    if not parts and view.aliases():
        return Known(False, "no alias came from a checkpoint", code=NO_MATCH)
    return Every(tuple(parts))


def _match_names(view: View, ref: Ref, names: Collection[str]) -> Iterator[str]:
    """The names that a reference matches, by the kind of the tensor as it was loaded, or added."""
    before, now = view.original(ref.alias), {*view.names(ref.alias)}
    for name, _ in compile_pattern(ref.name).matches(names):
        expr = before.get(name) or (view.fetch(ref.alias, name) if name in now else None)
        if ref.kind is None or (expr is not None and ref.takes(expr.aval.dtype)):
            yield name


def _check_kept(view: View, alias: str, meant: Collection[str]) -> Verdict:
    """The verdict that tensors of an alias are those that it was created with."""
    before, after = view.original(alias), set(view.names(alias))
    lost = [n for n in before if n in meant and n not in after]
    new = [n for n in after if n in meant and n not in before]
    if lost or new:
        what = [f"removed or renamed: {list_sorted(lost)}"] * bool(lost) + [f"added: {list_sorted(new)}"] * bool(new)
        return Known(False, f"'{alias}' is not as it came in; {'; '.join(what)}")
    for name, (was, now) in view.tree_gaps(alias).items():
        if name in meant:
            return Known(False, f"'{name}' came in as {was or 'nothing'}, and is {now or 'nothing'} now")
    values = [(n, before[n], view.fetch(alias, n)) for n in before if n in meant]
    return Every(tuple(_as_before(old, now, n) for n, old, now in values if now is not old))


def _as_before(old: TensorExpr, now: TensorExpr, name: str) -> Verdict:
    if old.aval != now.aval:
        return Known(False, f"'{name}' came in as {old.aval}, and is {now.aval} now")
    return alike(old, now, f"'{name}' is not as it came in")


@assertion("all", bare="of")
def all_(view: View, *, of: AssertionsKey) -> Verdict:
    """Every inner assert holds.

    Example: `assert: {all: [{exists: a}, {exists: b}]}`
    """
    return Every(tuple(a.ask(view) for a in of))


@assertion("any", bare="of")
def any_(view: View, *, of: AssertionsKey) -> Verdict:
    """At least one inner assert holds.

    Example: `assert: {any: [{exists: a}, {exists: b}]}`
    """
    return Some(tuple(a.ask(view) for a in of))


@assertion("not", bare="of")
def not_(view: View, *, of: AssertionKey) -> Verdict:
    """The inner assert does not hold. A mistake in the inner assert itself stays an error.

    It holds where the inner assert is about tensors that do not exist, with a note: `not: {exists: ...}` asks for that.
    Example: `assert: {not: {exists: '.*\\.inv_freq'}}`
    """
    verdict = of.ask(view)
    if (known := settle(verdict, None)) is not None and known.code == NO_MATCH:
        view.note(NO_MATCH, f"holds only since {known.why}", hint=known.hint)
    return Negated(verdict)
