"""`dump` and `diff`: reports about tensors. They change nothing and never fail a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StrictBool

from brainsurgery_jax._lazy import np
from brainsurgery_jax.documents import Document, Facts, NameTree, Parts, Value
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Text, Word
from brainsurgery_jax.numerics.compare import Eps, gap, largest, pair
from brainsurgery_jax.numerics.figures import Figures, Tolerance, describe_figures, measuring
from brainsurgery_jax.op import SlicedPattern, sink
from brainsurgery_jax.ops._verdicts import list_sorted
from brainsurgery_jax.protocol import Item, Known, Pending, PendingReport, Reduction, TensorExpr, View, settle
from brainsurgery_jax.reduction import join_reductions
from brainsurgery_jax.select import Ref
from brainsurgery_jax.summaries import STATISTICS

Layout = Annotated[Literal["compact", "tree", "json"], Word]
Verbosity = Annotated[Literal["shape", "stat", "full"], Word]

MOST_VALUES = 1 << 16


VALUES = Reduction(lambda x: [x], lambda a, b: a + b, lambda xs: np.concatenate(xs), None)


def _leaf(view: View, alias: str, name: str, expr: TensorExpr, verbosity: str) -> dict[str, Value]:
    leaf: dict[str, Value] = {"shape": list(expr.aval.shape)}
    if verbosity == "full":
        leaf |= {"dtype": str(expr.aval.dtype), "values": None}
    if verbosity != "shape":
        reads, writes = view.count(alias, name)
        leaf |= {"reads": reads, "writes": writes}
    return leaf


def _ask(expr: TensorExpr, name: str, verbosity: str) -> Pending | None:
    if verbosity == "shape" or expr.aval.dtype.is_opaque:
        return None
    if verbosity == "full" and expr.aval.size > MOST_VALUES:
        hint = "Slice the target, such as `w::[:4, :4]`, or use `verbosity: stat`."
        raise Refusal(
            "dump-size", f"'{name}' has {expr.aval.size:,} values; at most {MOST_VALUES:,} are printed", hint=hint
        )
    reduction: Reduction = VALUES if verbosity == "full" else STATISTICS
    return Pending((expr,), reduction, lambda answer: Known(True))


class DumpedLeaf(NamedTuple):
    """A tensor of a dump: what is known of it, and the number of the question that is asked of its values."""

    name: str
    shape: tuple[int, ...]
    known: dict[str, Value]
    question: int | None

    def fill(self, answers: Sequence[object]) -> dict[str, Value]:
        """The entry with its answer filled in."""
        if self.question is None:
            return self.known
        answer = answers[self.question]
        if isinstance(answer, dict):
            tail = {k: self.known[k] for k in ("reads", "writes")}
            return {"shape": self.known["shape"], **answer, **tail}
        values = [] if answer is None else np.asarray(answer).reshape(self.shape).tolist()
        return self.known | {"values": values}


@sink()
def dump(
    view: View, *, target: SlicedPattern | None = None, format: Layout = "compact", verbosity: Verbosity = "shape"
) -> PendingReport:
    """Print tensors: their shapes, statistics (`stat`) or values (`full`), as a tree, a compact tree, or JSON.

    Example: `dump: {target: 'h\\..*::[:2]', format: compact, verbosity: stat}`
    """
    groups = {target.alias: view.select(target, "target")} if target else _everything(view)
    asked: list[Pending] = []
    leaves: dict[str, list[DumpedLeaf]] = {}
    for alias, items in groups.items():
        rows = leaves[alias] = []
        for name, expr in items:
            question = _ask(expr, name, verbosity)
            place = None if question is None else len(asked)
            rows.append(DumpedLeaf(name, expr.aval.shape, _leaf(view, alias, name, expr, verbosity), place))
            asked.extend([question] if question else [])

    def show(answers: Sequence[object]) -> Document:
        filled = {alias: tuple((row.name, row.fill(answers)) for row in rows) for alias, rows in leaves.items()}
        trees = tuple(NameTree("" if target else alias, rows, format) for alias, rows in filled.items())
        return Parts(trees, space=0 if format == "json" else 1) if trees else NameTree("", (), format)

    return PendingReport(tuple(asked), show)


def _everything(view: View) -> dict[str, list[Item]]:
    return {a: [Item(n, view.fetch(a, n)) for n in sorted(view.names(a))] for a in view.aliases()}


@dataclass(frozen=True)
class SideKeys(KeyGroup):
    """The two sets of tensors that are compared."""

    mode: Annotated[Literal["refs", "aliases"], Word] = "refs"
    left: SlicedPattern | None = None
    right: SlicedPattern | None = None
    left_alias: Text | None = None
    right_alias: Text | None = None

    def refs(self) -> tuple[Ref, Ref]:
        """Their patterns. Raises Refusal for keys that the mode does not take."""
        sides, aliases = (self.left, self.right), (self.left_alias, self.right_alias)
        given = dict(zip(("left", "right", "left_alias", "right_alias"), (*sides, *aliases), strict=True))
        needed = ("left", "right") if self.mode == "refs" else ("left_alias", "right_alias")
        if {k for k, v in given.items() if v is not None} != set(needed):
            got = " and ".join(k for k, v in given.items() if v is not None) or "none"
            hint = (
                "`left` and `right` are patterns; with `mode: aliases` whole aliases, `left_alias` and `right_alias`."
            )
            found = f"mode '{self.mode}' takes the keys {needed[0]} and {needed[1]}, got {got}"
            raise Refusal("diff-keys", found, key="mode", hint=hint)
        left, right = sides if self.mode == "refs" else (Ref(str(a), ".*", None) for a in aliases)
        assert left is not None and right is not None
        return left, right


@sink()
def diff(
    view: View,
    *,
    sides: SideKeys,
    eps: Eps | None = None,
    unmatched: Literal["error", "keep", "drop"] = "keep",
    figures: Annotated[StrictBool, Field(description="measure what differs")] = True,
) -> PendingReport:
    """Print what differs between two sets of tensors of the same names: missing ones, shapes, dtypes, values.

    Of values it gives the figures of the command `diff`: how many elements differ, the largest difference and its
    place, relative change and cosine; with `figures: false` none, and a tensor is read up to its first difference and
    no further. If both aliases have trees, leaves without a tensor and the types of leaves are compared, too. Names
    that only one set has are listed; `unmatched: drop` omits them, and `unmatched: error` refuses them, as it does two
    empty sets.
    Example: `diff: {mode: aliases, left_alias: a, right_alias: b}`
    """
    left, right = sides.refs()
    ours, theirs = view.match(left, "left"), view.match(right, "right")
    if not ours and not theirs:
        raise view.nothing(left, "left" if sides.left else "left_alias")
    shared = sorted({*ours} & {*theirs})  # only these are fetched and count as read
    pairs = {n: (_slice(view, left, n, "left"), _slice(view, right, n, "right")) for n in shared}
    missing = [n for n in theirs if n not in pairs], [n for n in ours if n not in pairs]
    if unmatched == "error" and any(missing):
        alone = zip((right, left), missing, strict=True)
        told = "; ".join(f"only '{ref}' has {list_sorted(names)}" for ref, names in alone if names)
        hint = "`unmatched: keep` lists them, `unmatched: drop` leaves them out."
        raise Refusal("unmatched", f"the sets do not pair up: {told}", hint=hint)
    if unmatched == "drop" and not shared:
        raise Refusal("unmatched", "no name is in both sets", hint="Compare the names on both sides.")
    missing = missing if unmatched == "keep" else ([], [])
    gaps = view.tree_gaps(left.alias, right.alias) if sides.mode == "aliases" else {}
    told = [f"'{name}' is {a or 'nothing'} and {b or 'nothing'}" for name, (a, b) in gaps.items()]
    return _difference(str(left), str(right), pairs, missing, eps, told, figures=figures)


def _slice(view: View, ref: Ref, name: str, key: str) -> TensorExpr:
    return view.slice(view.fetch(ref.alias, name, key), ref, key)


def _difference(
    left: str,
    right: str,
    pairs: Mapping[str, tuple[TensorExpr, TensorExpr]],
    missing: tuple[list[str], list[str]],
    eps: float | None,
    told: Sequence[str],
    *,
    figures: bool,
) -> PendingReport:
    asked: list[Pending] = []
    findings: list[tuple[str, str | int]] = []
    measure = measuring(Tolerance(eps or 0.0))
    for name, (ours, theirs) in pairs.items():
        verdict = pair(ours, theirs, name, eps)
        if (known := settle(verdict, None)) is not None:
            findings.extend([(name, known.why)] if not known.holds else [])
        elif isinstance(verdict, Pending):
            findings.append((name, len(asked)))
            decide = verdict.reduction if eps is None else LARGEST
            reduction = join_reductions(decide, measure) if figures else decide
            asked.append(Pending(verdict.exprs, reduction, lambda answer: Known(True)))

    def why(name: str, finding: str | int, answers: Sequence[Answer]) -> str | None:
        if isinstance(finding, str):
            return finding
        answer, _ = _split(answers[finding])
        if eps is None:
            return None if answer else f"'{name}' differs in value"
        return None if answer <= eps else f"'{name}' differs by {answer:.6g}, more than {eps:.6g}"

    def show(answers: Sequence[Answer]) -> Document:
        told_of = [(name, finding, why(name, finding, answers)) for name, finding in findings]
        differing = [text for _, _, text in told_of if text is not None] + [*told]
        found = ((name, _split(answers[at])[1]) for name, at, text in told_of if text and isinstance(at, int))
        measured = [
            f"{name}: {_describe(one, pairs[name][0].aval.shape)}" for name, one in found if one and one.differing
        ]
        titles = (f"missing in {left}", f"missing in {right}", "differing")
        sections = tuple(zip(titles, map(tuple, (*missing, differing)), strict=True))
        more = (("figures", tuple(measured)),) if measured else ()
        return Facts(f"diff {left} {right}", sections + more, "" if any(f for _, f in sections) else "no difference")

    return PendingReport(tuple(asked), show)


Answer = float | tuple[float, Figures]
"""What decides about two tensors, and with `figures` how they differ."""


def _split(answer: Answer) -> tuple[float, Figures | None]:
    return answer if isinstance(answer, tuple) else (answer, None)


def _describe(found: Figures, shape: Sequence[int]) -> str:
    return "; ".join(filter(None, describe_figures(found, shape)))


LARGEST = largest(gap)
