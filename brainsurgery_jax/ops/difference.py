"""`diff`: what differs between two sets of tensors. It changes nothing and never fails a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Text, Word
from brainsurgery_jax.numerics.compare import Eps
from brainsurgery_jax.op import SlicedPattern, sink
from brainsurgery_jax.ops._differences import TellingKeys, find_difference, report_differences
from brainsurgery_jax.ops._verdicts import list_sorted
from brainsurgery_jax.protocol import PendingReport, TensorExpr, View
from brainsurgery_jax.select import Ref


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
    telling: TellingKeys,
) -> PendingReport:
    """Print what differs between two sets of tensors of the same names: missing ones, shapes, dtypes, values.

    Of values it gives the figures of the command `diff`: how many elements differ, the largest difference and its
    place, relative change and cosine; in the order of `sort`, the first `top` of them, or summed up `by` layer or
    module. With `figures: false` there are none, and a tensor is read up to its first difference and no further. If
    both aliases have trees, leaves without a tensor and the types of leaves are compared, too. Names that only one set
    has are listed; `unmatched: drop` omits them, and `unmatched: error` refuses them, as it does two empty sets.
    Example: `diff: {mode: aliases, left_alias: a, right_alias: b}`
    """
    left, right = sides.refs()
    telling.check()
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
    found = [find_difference(view, name, ours, theirs, eps, telling) for name, (ours, theirs) in pairs.items()]
    return report_differences((str(left), str(right)), found, missing, told, telling)


def _slice(view: View, ref: Ref, name: str, key: str) -> TensorExpr:
    return view.slice(view.fetch(ref.alias, name, key), ref, key)
