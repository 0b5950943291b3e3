"""What can be wrong, as values: a `Diagnostic` with its place, and the two exceptions that carry bad news."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Surface = Literal["python", "shell"]
_surface: ContextVar[Surface] = ContextVar("surface", default="python")


@contextmanager
def speaking(surface: Surface) -> Iterator[None]:
    """A block whose messages are read there: by who calls our functions, or in a shell."""
    before = _surface.set(surface)
    try:
        yield
    finally:
        _surface.reset(before)


def worded(*, shell: str, python: str) -> str:
    """What to do, for who reads it: by a command or an option, or by a call or an argument."""
    return shell if _surface.get() == "shell" else python


_converting: ContextVar[bool] = ContextVar("converting", default=False)


@contextmanager
def converting() -> Iterator[None]:
    """A block that runs the plan of a conversion, which nobody can change."""
    before = _converting.set(True)
    try:
        yield
    finally:
        _converting.reset(before)


def is_converting() -> bool:
    """Whether the plan at work is that of a conversion, so that remedies are about its source."""
    return _converting.get()


class Span(NamedTuple):
    """A place in a plan: file name as the user gave it, 1-based line and column (0: unknown).

    In a plan that came as a mapping: the keys and indices that lead there, and its number among all places as `col`.
    """

    file: str
    line: int = 0
    col: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}" if self.line else self.file

    @property
    def row(self) -> str:
        """The place without its column."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def in_mapping(self) -> bool:
        """Whether it is a place in a mapping."""
        return not self.line and self.col > 0


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: a stable code, what is wrong and what was found, where, and what to do."""

    code: str
    message: str
    span: Span | None = None
    hint: str = ""
    severity: Literal["error", "note"] = "error"

    def __str__(self) -> str:
        place = f"{self.span}: " if self.span else ""
        note = "note: " if self.severity == "note" else ""
        hint = "".join(f"\n    {line}" for line in self.hint.splitlines())
        return f"{place}{note}{self._without_label} [{self.code}]{hint}"

    @property
    def _without_label(self) -> str:
        """The message without the keys at its beginning, where the place says them already."""
        label, colon, rest = self.message.partition(": ")
        said = self.span is not None and self.span.in_mapping and f".{self.span.file}".endswith(f".{label}")
        return rest if colon and said else self.message


class PlanError(Exception):
    """The plan is wrong, or one of its checks failed. Carries every diagnostic found, in the order of the plan."""

    def __init__(self, diagnostics: Iterable[Diagnostic]):
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))

    def of_call(self, call: str) -> PlanError:
        """The same for a plan that a function made, which nobody wrote: its places tell nothing, and its keys are the
        arguments of the function."""
        return PlanError(_of_call(d, call) if d.span and d.span.in_mapping else d for d in self.diagnostics)


_ARGUMENTS = re.compile(r"(?:output|layout)\.(\w+): ")


def _of_call(found: Diagnostic, call: str) -> Diagnostic:
    message = _ARGUMENTS.sub(
        lambda m: f"{call}({'layout' if m[1] == 'name' else m[1]}=...): ", found.message, count=1
    ) if _surface.get() == "python" else found.message  # fmt: skip
    return replace(found, span=None, message=message)


class Refusal(Exception):
    """Raised inside an op or a pattern: a mistake whose place in the plan the caller knows (`key` in the payload).

    `kinds`: of a tensor whose dtype does not do, the kinds of dtypes (`select.KINDS`) that would. `at`: which part
    of the payload the key is in, where several conditions of an assert have keys of that name. `others`: what else is
    wrong in the same payload.
    """

    at: tuple[str | int, ...] = ()
    others: tuple[Refusal, ...] = ()

    def __init__(self, code: str, message: str, *, key: str = "", hint: str = "", kinds: tuple[str, ...] = ()):
        self.code, self.message, self.key, self.hint, self.kinds = code, message, key, hint, kinds
        super().__init__(message)

    def about(self, more: str) -> Refusal:
        """The same refusal, with more at the end of its message."""
        return Refusal(self.code, self.message + more, key=self.key, hint=self.hint, kinds=self.kinds)


def refuse(mistakes: Iterable[Refusal]) -> None:
    """Raise the first of several mistakes, and the others with it, each once. Does nothing if there are none."""
    found = list({(bad.key, bad.message): bad for bad in mistakes}.values())
    if found:
        found[0].others = tuple(found[1:])
        raise found[0]


class Stopped(Exception):
    """A run was stopped by the event in its `stop` option. Nothing was published."""

    def __init__(self) -> None:
        super().__init__("the run was stopped by its `stop` event")
        self.add_note("nothing was published")


class StoreError(Exception):
    """A checkpoint could not be read or written: which file, which tensor, what is wrong, what to do.

    `code` is that of the diagnostic which it becomes in a plan, if it is one of its own. `castable`: whether the tensor
    would do in another dtype.
    """

    def __init__(
        self, path: object, problem: str, *, tensor: str | None = None, remedy: str = "", code: str = "",
        castable: bool = False,
    ):  # fmt: skip
        self.path, self.problem, self.tensor, self.remedy, self.code = str(path), problem, tensor, remedy, code
        self.castable = castable
        where = f"{path}: tensor '{tensor}'" if tensor is not None else str(path)
        super().__init__(f"{where}: {problem}" + (f"\n    {remedy}" if remedy else ""))


def cause_of(error: BaseException) -> BaseException:
    """What lies behind an error that a library raised while it cleaned up: a failure of the system, or a signal that
    stops the process; the error itself if there is neither."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError | KeyboardInterrupt | SystemExit):
            return at
        at = at.__cause__ or at.__context__
    return error


def did_you_mean(word: str, known: Iterable[str], *, limit: int = 500, ours: bool = False) -> str:
    """`" Did you mean 'x'?"` for the nearest known word, or an empty string. See `nearest_word`."""
    near = nearest_word(word, known, limit=limit, ours=ours)
    return "" if near is None else f" Did you mean '{near}'?"


def nearest_word(word: str, known: Iterable[str], *, limit: int = 500, ours: bool = False) -> str | None:
    """The known word that is most like `word`, if one is like it.

    Of `ours`, ops and functions, the shorter a word the nearer it must be: of four letters none but the
    last may be another, since `sort` is no misspelt `sqrt`.

    Of very many words only the `limit` that share the longest prefix or suffix with `word` are compared.
    """
    import difflib  # 8 ms, and only needed once something is wrong already

    words = list(known)
    if len(words) > limit:
        words = sorted(words, key=lambda w: -_common_ends(word, w))[:limit]
    cutoff = 0.75 if ours and len(word) < _SHORT else 0.6
    close = difflib.get_close_matches(word, words, n=3, cutoff=cutoff)
    return next((other for other in close if not ours or len(word) > _TINY or _has_the_letters(word, other)), None)


_TINY, _SHORT = 4, 8  # letters


def _has_the_letters(word: str, other: str) -> bool:
    """Whether two words differ in their case, in the order of their letters, in the last or in one that is missing."""
    short, long = sorted((word.lower(), other.lower()), key=len)
    if short[:-1] == long[:-1] or sorted(short) == sorted(long):
        return True
    return any(long[:at] + long[at + 1 :] == short for at in range(len(long)))


def _common_ends(a: str, b: str) -> int:
    most = min(len(a), len(b))
    head = next((i for i in range(most) if a[i] != b[i]), most)
    tail = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    return head + tail
