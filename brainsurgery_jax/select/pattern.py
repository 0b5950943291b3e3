"""Patterns over tensor names: a regex over the whole name, or structured tokens. Matching ends within a time limit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from types import MappingProxyType

from brainsurgery_jax.select.error import RefError, shown
from brainsurgery_jax.select.limit import Deadline, TimeLimit
from brainsurgery_jax.select.regexes import MAX_NESTED, check_regex, nesting, scan
from brainsurgery_jax.select.structured import NameToken, SegmentRegex, Value, as_regex, parse_token, solve

# What a match captured: the groups of a regex in order ("" for one that took no part), or the variables in theirs.
Binding = tuple[Value, ...]
Match = tuple[str, Binding]
# The groups of a full match found before a deadline.
Groups = Callable[[str, Deadline], "tuple[str | None, ...] | None"]
Finder = Callable[[Collection[str], Deadline], list[Match]]

# What one pattern may spend on all the names it is given.
TIME_LIMIT = TimeLimit()
# Names between two looks at the clock where a single name cannot take long.
BATCH = 512
# Names longer than this are matched under the clock, however harmless the pattern looks.
LONG_NAME = 256


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """A compiled pattern. `names` gives each named group's or variable's position in a Binding.

    `width` is the length of a Binding, `lists` are the variables that hold a run of segments, `literal` is the only
    name that can match (None: there may be several), and `fault` the first malformed token of a structured pattern.
    """

    source: str | tuple[str, ...]
    names: Mapping[str, int]
    width: int
    literal: str | None
    find: Finder
    lists: frozenset[str] = frozenset()
    fault: RefError | None = None

    def match(self, name: str, limit: TimeLimit | None = None) -> Binding | None:
        """Match the whole name and return the captures, or None if it does not match."""
        found = self.matches((name,), limit)
        return found[0][1] if found else None

    def matches(self, names: Iterable[str], limit: TimeLimit | None = None) -> list[Match]:
        """Return the matching names and bindings, in lexicographic order. The default `limit` is `TIME_LIMIT`."""
        sized, limit = names if isinstance(names, Collection) else list(names), limit or TIME_LIMIT
        try:
            found = self.find(sized, limit.start())
        except TimeoutError as error:
            spent = f"took more than {limit.seconds:g} s on {len(sized)} name{'s' * (len(sized) != 1)} and was stopped"
            hint = "Avoid repeating a repetition, as '(a+)+' and '(a|aa)*' do; write the text between repeated parts."
            raise RefError("regex-timeout", f"the pattern {shown(self.source)} {spent}", hint) from error
        found.sort(key=itemgetter(0))
        return found


def compile_pattern(name: str | tuple[str, ...]) -> Pattern:
    """Compile a reference's name: text is a regex, tokens are a structured pattern."""
    return _regex_pattern(name) if isinstance(name, str) else _token_pattern(name)


def names_begun(text: str, names: Collection[str]) -> frozenset[str]:
    """The names whose beginning a regex of another program matches, as `re.match` has it; none if it is no regex. What
    a config says is as guarded against endless backtracking as what a plan says. Raises RefError if it takes too long.
    """
    return names_matched(f"(?:{text}).*", names)


def names_matched(text: str, names: Collection[str]) -> frozenset[str]:
    """As `names_begun`, with whole names, as `re.fullmatch` has it."""
    pattern = _pattern_if_regex(text)
    return frozenset(name for name, _ in pattern.matches(names)) if pattern else frozenset()


@lru_cache(maxsize=4096)  # an adapter's config has one for each module, and each module is held against all
def _pattern_if_regex(text: str) -> Pattern | None:
    try:
        return compile_pattern(text)
    except RefError:
        return None


def _regex_pattern(text: str) -> Pattern:
    compiled, facts = check_regex(text), scan(text)
    if facts.literal is not None:
        find = _finds_one(facts.literal)
    else:
        find = (
            _finds_plain(compiled, facts.guarded) if facts.safe else _finds_guarded(_match_guarded(text, facts.guarded))
        )
    names = {name: group - 1 for name, group in compiled.groupindex.items()}
    return Pattern(text, MappingProxyType(names), compiled.groups, facts.literal, find)


def _token_pattern(texts: tuple[str, ...]) -> Pattern:
    tokens = tuple(parse_token(text, _segment_regex) for text in texts)
    variables = tuple(dict.fromkeys(name for token in tokens for name in token.names))
    regex = as_regex(tokens)
    return Pattern(
        source=texts,
        names=MappingProxyType({name: at for at, name in enumerate(variables)}),
        width=len(variables),
        literal=_only_name(tokens),
        find=_finds_structured(tokens, variables) if regex is None else _finds_runs(re.compile(regex), tokens),
        lists=frozenset(name for token in tokens if token.is_run for name in token.names),
        fault=next((token.fault for token in tokens if token.fault), None),
    )


def _only_name(tokens: tuple[NameToken, ...]) -> str | None:
    plain = all(token.is_plain and "." not in token.text for token in tokens)  # no segment contains a dot
    return ".".join(token.text for token in tokens) if plain else None


def _finds_one(literal: str) -> Finder:
    def find(names: Collection[str], _: Deadline) -> list[Match]:
        return [(literal, ())] if literal in names else []

    return find


def _finds_runs(compiled: re.Pattern[str], tokens: tuple[NameToken, ...]) -> Finder:
    """The finder of structured tokens that `as_regex` could translate: a run's group starts with a dot, or is empty."""
    runs = [token.is_run for token in tokens if token.names]
    find_groups = _finds_plain(compiled, compiled.pattern)

    def find(names: Collection[str], deadline: Deadline) -> list[Match]:
        return [
            (dotted[1:], tuple(tuple(str(g).split(".")[1:]) if run else g for g, run in zip(groups, runs, strict=True)))
            for dotted, groups in find_groups(["." + name for name in names], deadline)
        ]

    return find


def _finds_plain(compiled: re.Pattern[str], spelling: str) -> Finder:
    fullmatch = compiled.fullmatch

    def find(names: Collection[str], deadline: Deadline) -> list[Match]:
        found: list[Match] = []
        listed = list(names)
        for start in range(0, len(listed), BATCH):
            batch = listed[start : start + BATCH]
            if max(map(len, batch)) > LONG_NAME:
                found += _finds_guarded(_match_guarded(compiled.pattern, spelling))(batch, deadline)
            else:
                found += [(name, m.groups("")) for name in batch if (m := fullmatch(name))]
            deadline.remaining()
        return found

    return find


def _finds_guarded(groups_of: Groups) -> Finder:
    def find(names: Collection[str], deadline: Deadline) -> list[Match]:
        matched = ((name, groups_of(name, deadline)) for name in names)
        return [(name, tuple(group or "" for group in groups)) for name, groups in matched if groups is not None]

    return find


def _finds_structured(tokens: tuple[NameToken, ...], variables: tuple[str, ...]) -> Finder:
    def find(names: Collection[str], deadline: Deadline) -> list[Match]:
        solved = ((name, solve(tokens, name.split("."), deadline)) for name in names)
        return [(name, tuple(map(bound.__getitem__, variables))) for name, bound in solved if bound is not None]

    return find


def _segment_regex(text: str) -> SegmentRegex:
    compiled, facts = check_regex(text), scan(text)
    find = _match_plain(compiled, facts.guarded) if facts.safe else _match_guarded(text, facts.guarded)
    return SegmentRegex(compiled.groups, bool(compiled.groupindex), find)


def _match_plain(compiled: re.Pattern[str], spelling: str) -> Groups:
    def groups_of(text: str, deadline: Deadline) -> tuple[str | None, ...] | None:
        if len(text) > LONG_NAME:
            return _match_guarded(compiled.pattern, spelling)(text, deadline)
        matched = compiled.fullmatch(text)
        return None if matched is None else matched.groups()

    return groups_of


def _match_guarded(text: str, spelling: str) -> Groups:
    """Match in full with the `regex` package, which can be stopped; six times slower than `re`, which cannot."""
    import regex  # 16 ms, and few patterns need it

    try:
        if nesting(spelling) > MAX_NESTED:
            raise RecursionError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fullmatch = regex.compile(spelling, regex.V0).fullmatch
    except (regex.error, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        message = f"'{text}' cannot be matched under a time limit: {reason}"
        raise RefError("regex-syntax", message, "Write it without rarer constructs, such as look-around.") from error

    def groups_of(name: str, deadline: Deadline) -> tuple[str | None, ...] | None:
        matched = fullmatch(name, timeout=deadline.remaining())
        return None if matched is None else matched.groups()

    return groups_of
