"""`dump`: what tensors hold. It changes nothing and never fails a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.documents import Document, NameTree, Parts, Value
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Word
from brainsurgery_jax.op import SlicedPattern, sink
from brainsurgery_jax.protocol import Item, Known, Pending, PendingReport, Reduction, TensorExpr, View
from brainsurgery_jax.summaries import STATISTICS, VALUES

Layout = Annotated[Literal["compact", "tree", "json"], Word]
Verbosity = Annotated[Literal["shape", "stat", "full"], Word]

MOST_VALUES = 1 << 16


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
