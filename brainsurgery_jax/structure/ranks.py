"""Experts of several ranks: the public one, and for each other a difference of low rank (FlexMoRE)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.protocol import Edit, Expand, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import describe, to
from brainsurgery_jax.structure.experts import ExpertNames

_TAIL = r"(?P<tail>.+\.weight)"


def lower_ranks(
    view: View, which: ModelAsked, rank: int | None, ranks: Mapping[int, int], public: int
) -> Iterator[Edit]:
    """What the op `expert_ranks` does."""
    layout = ExpertNames(describe(view, which))
    if layout.own.transposed:
        raise Refusal("structure-experts", f"experts of a {layout.model.place.kind} have no names of their own",
                      key="alias", hint="Leave the step out.")  # fmt: skip
    if layout.stacked:
        raise Refusal("structure-experts", f"the experts of '{layout.model.alias}' are in one tensor", key="alias",
                      hint="Put `- experts: {names: separate}` before this step.")  # fmt: skip
    if rank is None and not ranks:
        raise Refusal("structure-experts", "give rank, ranks or both", hint="Write `expert_ranks: {rank: 64}`.")
    for key, numbers in (("public", [public]), ("ranks", list(ranks))):
        wrong = next((n for n in numbers if not 0 <= n < layout.count), None)
        if wrong is not None:
            raise Refusal("structure-experts", f"there is no expert {wrong} of {layout.count}", key=key,
                          hint=f"Valid are 0 to {layout.count - 1}.")  # fmt: skip
    if public in ranks:
        raise Refusal("structure-experts", f"expert {public} is the public one, which stays as it is", key="ranks",
                      hint="Leave it out, or name another one as `public`.")  # fmt: skip
    wanted = {n: ranks.get(n, rank) for n in range(layout.count) if n != public}
    work = view.scratch()
    steps = [_lower(layout, n, public, size, work) for n, size in wanted.items() if size is not None]
    yield Expand(tuple(step for each in steps for step in each))


def _lower(layout: ExpertNames, number: int, public: int, rank: int, work: str) -> Iterator[Substep]:
    """The steps for one expert of every layer."""
    alias = layout.model.alias
    mine = {"alias": alias, "name": layout.expert(str(number), _TAIL)}
    common = to(alias, layout.named(str(public), r"\g<tail>"))
    held = to(work, layout.named(str(number), r"\g<tail>"))
    dtype = _dtype(layout)
    wide = "float64" if dtype == "float64" else "float32"
    yield Substep("compute", {"from": {"w": mine, "p": common}, "expr": f"{wide}(w) - {wide}(p)", "to": held,
                              "dtype": wide})  # fmt: skip
    yield Substep("phlora_", {"target": to(work, layout.expert(str(number), _TAIL)), "rank": rank})
    source = {"w": mine, "p": common, "d": held}
    yield Substep("compute", {"from": source, "expr": f"{wide}(p) + d", "to": to(alias, r"\g<0>"), "dtype": dtype})


def _dtype(layout: ExpertNames) -> str:
    """The dtype of all experts. Raises Refusal if they have several, or one that is not floating."""
    head = f"{layout.head}*.{layout.own.block}.experts."
    dtypes = {aval.dtype for part in layout.model.parts for aval in part.kin.first if part.starred.startswith(head)}
    names = sorted(dtype.name for dtype in dtypes)
    if len(dtypes) > 1 or not all(dtype.is_float for dtype in dtypes):
        raise Refusal("structure-experts", f"experts of '{layout.model.alias}' are {' and '.join(names)}", key="alias",
                      hint="Cast them to one floating dtype before this step.")  # fmt: skip
    return names[0]
