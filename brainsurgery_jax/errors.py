"""What can be wrong, as values: a `Diagnostic` with its place, and the two exceptions that carry bad news."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

MAPPING = "<mapping>"
"""The file of places in a plan that came as a mapping."""


class Span(NamedTuple):
    """A place in a plan: file name as the user gave it, 1-based line and column (0: unknown)."""

    file: str
    line: int = 0
    col: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}" if self.line else self.file


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
        return f"{place}{note}{self.message} [{self.code}]{hint}"


class PlanError(Exception):
    """The plan is wrong, or one of its checks failed. Carries every diagnostic found, in the order of the plan."""

    def __init__(self, diagnostics: Iterable[Diagnostic]):
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))

    def without_places(self) -> PlanError:
        """The same for a plan that nobody wrote: places in its text tell nothing, only those in files do."""
        return PlanError(replace(d, span=None) if d.span and d.span.file == MAPPING else d for d in self.diagnostics)


class Refusal(Exception):
    """Raised inside an op or a pattern: a mistake whose place in the plan the caller knows (`key` in the payload)."""

    def __init__(self, code: str, message: str, *, key: str = "", hint: str = ""):
        self.code, self.message, self.key, self.hint = code, message, key, hint
        super().__init__(message)


class StoreError(Exception):
    """A checkpoint could not be read or written: which file, which tensor, what is wrong, what to do.

    `code` is that of the diagnostic which it becomes in a plan, if it is one of its own.
    """

    def __init__(self, path: object, problem: str, *, tensor: str | None = None, remedy: str = "", code: str = ""):
        self.path, self.problem, self.tensor, self.remedy, self.code = str(path), problem, tensor, remedy, code
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


def did_you_mean(word: str, known: Iterable[str], *, limit: int = 500) -> str:
    """`" Did you mean 'x'?"` for the nearest known word, or an empty string. See `nearest_word`."""
    near = nearest_word(word, known, limit=limit)
    return "" if near is None else f" Did you mean '{near}'?"


def nearest_word(word: str, known: Iterable[str], *, limit: int = 500) -> str | None:
    """The known word that is most like `word`, if one is like it.

    Of very many words only the `limit` that share the longest prefix or suffix with `word` are compared.
    """
    import difflib  # 8 ms, and only needed once something is wrong already

    words = list(known)
    if len(words) > limit:
        words = sorted(words, key=lambda w: -_shared_ends(word, w))[:limit]
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.6)), None)


def _shared_ends(a: str, b: str) -> int:
    most = min(len(a), len(b))
    head = next((i for i in range(most) if a[i] != b[i]), most)
    tail = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    return head + tail
