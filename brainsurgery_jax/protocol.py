"""What ops and the fold say to each other: questions on the state (`View`), answered by edits, verdicts and reports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol

from brainsurgery_jax.documents import Document
from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.reduction import Answer, Reduction
from brainsurgery_jax.select import Match, Pattern, Ref

if TYPE_CHECKING:
    import numpy as np


class TensorExpr(Protocol):
    """A node of the graph, as far as ops need to know it."""

    @property
    def aval(self) -> Aval: ...


Dest = Literal["new", "existing", "rebind"]


class Item(NamedTuple):
    """One match of a pattern: the tensor's name and its value (sliced, if the reference was)."""

    name: str
    expr: TensorExpr


class Results(NamedTuple):
    """What a builder makes of a match, if that is not one expression: one for each key that the form writes. `dest`
    replaces that of the form; `drops`: the match is removed, unless a result has its name."""

    exprs: tuple[TensorExpr, ...]
    dest: Dest | None = None
    drops: bool = False


Row = tuple[str, tuple[str, ...]]
"""The name of a match, and the names that templates make of it."""


class Alone(NamedTuple):
    """A tensor that the template under `key` could have named, and that no match goes with. `source`: the name of the
    match that it would go with, if that is known."""

    key: str
    alias: str
    name: str
    source: str | None


class Pairing(NamedTuple):
    """Sets of tensors beside each other: matches with a partner under every key, other matches, and tensors under the
    keys that are no match's partner."""

    rows: list[Row]
    alone: list[Row]
    others: tuple[Alone, ...]


class ModelAsked(NamedTuple):
    """Which model a step is about: its alias (None: the only one), the key of its part of config.json, if it has
    several, and what it is made of, as the step says for a model of no known family."""

    alias: str | None = None
    part: str | None = None
    family: Mapping[str, Any] | None = None


class View(Protocol):
    """What an op may ask of the state. Every method raises `Refusal` for what the plan got wrong."""

    @property
    def default_alias(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def provisional(self) -> bool: ...
    @property
    def flags(self) -> Flags: ...
    def has_key(self, key: str) -> bool: ...
    def note(self, code: str, message: str, key: str = "", hint: str = "") -> None: ...
    def aliases(self) -> Sequence[str]: ...
    def names(self, alias: str, key: str = "") -> Sequence[str]: ...
    def fetch(self, alias: str, name: str, key: str = "") -> TensorExpr: ...
    def aval(self, alias: str, name: str) -> Aval: ...
    def has(self, alias: str, name: str) -> bool: ...
    def count(self, alias: str, name: str) -> tuple[int, int]: ...
    def match(self, ref: Ref, key: str = "") -> list[str]: ...
    def captures(self, ref: Ref, key: str = "") -> tuple[Pattern, list[Match]]: ...
    def select(self, ref: Ref, key: str = "", required: bool = True) -> list[Item]: ...
    def rename(
        self, source: Ref, targets: Mapping[str, Ref], *, read: Collection[str] = (),
        written: Collection[str] | None = None, before: Collection[str] = (), others: bool = False,
    ) -> list[Row]: ...  # fmt: skip
    def others(self, ref: Ref) -> list[str]: ...
    def pair(self, source: Ref, targets: Mapping[str, Ref]) -> Pairing: ...
    def one(self, ref: Ref, key: str = "") -> Item: ...
    def original(self, alias: str, key: str = "") -> Mapping[str, TensorExpr]: ...
    def type_gap(self, left: tuple[str, str], right: tuple[str, str]) -> tuple[str, str] | None: ...
    def tree_gaps(self, left: str, right: str | None = None) -> Mapping[str, tuple[str, str]]: ...
    def config(self, alias: str, key: str = "", file: str = "") -> tuple[str, object] | None: ...
    def origin(self, alias: str) -> str | None: ...
    def side_file(self, alias: str, name: str, key: str = "") -> bytes | None: ...
    def literal(self, ref: Ref, key: str = "") -> str: ...
    def nothing(self, ref: Ref, key: str = "") -> Refusal: ...
    def is_original(self, *exprs: TensorExpr) -> bool: ...
    def slice(self, expr: TensorExpr, ref: Ref, key: str = "") -> TensorExpr: ...
    def update(self, whole: TensorExpr, ref: Ref, value: TensorExpr, key: str = "") -> TensorExpr: ...
    def apply(self, kernel: Callable[..., object], *srcs: TensorExpr, **params: object) -> TensorExpr: ...
    def apply_all(
        self, kernel: Callable[..., object], *srcs: TensorExpr, **params: object
    ) -> tuple[TensorExpr, ...]: ...
    def constant(self, value: np.ndarray, dtype: DType) -> TensorExpr: ...
    def number(self, expr: TensorExpr, bound: int) -> int: ...
    def check_scales(self, alias: str, name: str, usual: tuple[int, int], key: str = "") -> None: ...
    def scratch(self) -> str: ...
    def open(self, path: str, key: str = "", format: str | None = None) -> Mapping[str, TensorExpr]: ...


# --- Edits ---


class Bind(NamedTuple):
    """Give a tensor a name. `like`: alias and name of the tensor that it is made of, as which it lies in the tree."""

    alias: str
    name: str
    expr: TensorExpr
    dest: Dest = "new"
    like: tuple[str, str] | None = None


class Plant(NamedTuple):
    """Copy a leaf that holds no tensor, such as None, unless something is where it would be."""

    alias: str
    name: str
    to_alias: str
    to_name: str


class Move(NamedTuple):
    """Give a leaf another name; all moves of a step happen at once."""

    alias: str
    name: str
    to_alias: str
    to_name: str


class MoveAll(NamedTuple):
    """Give many leaves of one alias other names: as many moves, as one edit."""

    alias: str
    names: Sequence[str]
    to_alias: str
    to_names: Sequence[str]


class Drop(NamedTuple):
    """Forget a leaf."""

    alias: str
    name: str


class AddAlias(NamedTuple):
    """Make an empty set of tensors, or one filled from a checkpoint (`path`: where its side files are). `like`: the
    alias whose config and side files it has, too; without, outputs take those of the first input."""

    alias: str
    tensors: Mapping[str, TensorExpr] | None = None
    path: str | None = None
    like: str | None = None


class DropAlias(NamedTuple):
    """Forget an alias and all its tensors."""

    alias: str


class RenameAlias(NamedTuple):
    """Give an alias another name."""

    alias: str
    to: str


class Publish(NamedTuple):
    """Write tensors to a path, when the run succeeds."""

    path: str
    alias: str
    names: tuple[str, ...] | None
    format: str | None
    shard: str | None
    overwrite: bool
    sidecars: bool = True
    config: Mapping[str, object] = {}
    metadata: Mapping[str, str] = {}
    options: Mapping[str, object] = {}


class SetConfig(NamedTuple):
    """Give an alias another config (config.json; of an adapter adapter_config.json). See `View.config`. `file`: which,
    where the alias has none that says so."""

    alias: str
    config: Mapping[str, object]
    file: str = ""


class TakeTokenizer(NamedTuple):
    """Give an alias the files of the tokenizer of another one, in place of its own."""

    alias: str
    source: str


class MakeTokenizer(NamedTuple):
    """Give an alias a tokenizer that the step made, in place of its own: the files, by name."""

    alias: str
    files: Mapping[str, bytes]


class PairCodes(NamedTuple):
    """Keep in mind that a tensor holds codes that the step made, whose scales stand beside it under the usual names.
    `block`: how many rows and columns share one, if the step says so."""

    alias: str
    name: str
    block: tuple[int, int] | None = None


class Stop(NamedTuple):
    """Leave out the steps that follow."""


class Say(NamedTuple):
    """Report a document when the step is reached."""

    document: Document


class Describe(NamedTuple):
    """Print the page of an op (or of an operator of assert), or the list of all ops."""

    op: str | None = None
    operator: str | None = None


class SetFlags(NamedTuple):
    """Turn flags of the session on or off; None leaves one as it is."""

    dry_run: bool | None = None
    preview: bool | None = None
    verbose: bool | None = None


class Substep(NamedTuple):
    """A step that another one expands to, as plain data: the name of an op and its payload. The payload may hold
    references (`Ref`) as they are."""

    op: str
    payload: Mapping[str, object]


class Expand(NamedTuple):
    """Do other steps here, after all other edits of this step. They may expand in turn, to a depth of 16. `alias` is
    their default alias (None: that of this step)."""

    steps: tuple[Substep, ...]
    alias: str | None = None


class Inline(NamedTuple):
    """Do other steps here, with a default alias of their own."""

    plans: tuple[SubPlan, ...]
    default_alias: str | None


Edit = (
    Bind
    | Plant
    | Move
    | MoveAll
    | Drop
    | AddAlias
    | DropAlias
    | RenameAlias
    | SetConfig
    | TakeTokenizer
    | MakeTokenizer
    | PairCodes
    | Publish
    | Stop
    | Say
    | Describe
    | SetFlags
    | Inline
    | Expand
)


@dataclass(frozen=True, slots=True)
class SubPlan:
    """Steps within a step, as YAML nodes: what they mean is known when they are reached. `data`: what they say,
    wherever it stands; `alias`: that of their one input; `file`: where they were read; `apart`: whether they see no
    alias of the plan around them, and their own end with them."""

    steps: tuple[Any, ...] = field(compare=False, repr=False)
    data: tuple[Any, ...]
    alias: str | None = None
    file: str | None = None
    apart: bool = False


class Flags(NamedTuple):
    """How a session works: whether it writes, tells what a step will do, and tells each tensor."""

    dry_run: bool = False
    preview: bool = False
    verbose: bool = False


NO_FLAGS = Flags()


# --- Verdicts and reports ---


NO_MATCH = "no-match"
"""The code of what is about tensors of which there are none."""


class Known(NamedTuple):
    """A verdict that headers settle, and the sentence that explains it. `at`: its place in the payload, if not all.
    `code` and `hint` are those of its diagnostic."""

    holds: bool
    why: str = ""
    at: tuple[str | int, ...] = ()
    code: str = "assert-failed"
    hint: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Pending(Generic[Answer]):
    """A verdict that needs values: `judge` gets the reduction's answer. Each is a question of its own."""

    exprs: tuple[TensorExpr, ...]
    reduction: Reduction[Any, Answer]
    judge: Callable[[Answer], Known]


class Joint(NamedTuple):
    """A verdict on the answers of several questions together, in their order."""

    parts: tuple[Pending, ...]
    judge: Callable[[Sequence[Any]], Known]


class Every(NamedTuple):
    """Holds if every part holds; the first that does not explains it."""

    parts: tuple[Verdict, ...]


class Some(NamedTuple):
    """Holds if any part holds."""

    parts: tuple[Verdict, ...]


class Negated(NamedTuple):
    """Holds if its part does not."""

    part: Verdict


class PartVerdict(NamedTuple):
    """The verdict of one part of an assert, with the place of that part in the payload."""

    part: Verdict
    at: tuple[str | int, ...]


Verdict = Known | Pending | Joint | Every | Some | Negated | PartVerdict


class PendingReport(NamedTuple):
    """A document for the user: `show` makes it from the answers of the pending reductions, in order."""

    pending: tuple[Pending, ...]
    show: Callable[..., Document]

    def document(self, answers: Mapping[Pending, object]) -> Document:
        """The document, once every question has its answer."""
        return self.show([answers[question] for question in self.pending])


def report(document: Document) -> PendingReport:
    """The report of a document that waits for no answer."""
    return PendingReport((), lambda answers: document)


def settle(verdict: Verdict, answers: Mapping[Pending, object] | None) -> Known | None:
    """The verdict as far as it is known: with `answers` always, from headers alone (None) perhaps.

    An answer that is `Known` was judged before.
    """
    match verdict:
        case Known():
            return verdict
        case Pending():
            if answers is None:
                return None
            found = answers[verdict]
            return found if isinstance(found, Known) else verdict.judge(found)
        case Joint(parts, judge):
            return None if answers is None else judge([answers[part] for part in parts])
        case Negated(part):
            inner = settle(part, answers)
            if inner is None:
                return None
            why = f"{inner.why or 'the assert inside it holds'}, and should not" if inner.holds else ""
            return Known(not inner.holds, why)
        case PartVerdict(part, at):
            known = settle(part, answers)
            return known if known is None or known.at else known._replace(at=at)
        case Every(parts):
            return _first(parts, answers, stop=False)
        case Some(parts):
            return _first(parts, answers, stop=True)


def _first(parts: Sequence[Verdict], answers: Mapping[Pending, object] | None, *, stop: bool) -> Known | None:
    known = [settle(p, answers) for p in parts]
    for k in known:
        if k is not None and k.holds is stop:
            return k
    if None in known:
        return None
    reasons = "; ".join(k.why for k in known if k is not None and k.why)
    return Known(not stop, f"none of them holds: {reasons}" if stop else "")


def pendings(verdict: Verdict) -> Iterator[Pending]:
    """The reductions that a verdict still needs, parts that headers settle left out."""
    if settle(verdict, None) is not None:
        return
    match verdict:
        case Pending():
            yield verdict
        case Joint(parts):
            yield from parts
        case Negated(part) | PartVerdict(part):
            yield from pendings(part)
        case Every(parts) | Some(parts):
            for p in parts:
                yield from pendings(p)
