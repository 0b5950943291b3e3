"""The ops of the registry, and what one of them takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import cast

from brainsurgery_jax.documents import Column, Entry, Grid, Record, Text, Value, show_only
from brainsurgery_jax.op import ASSERTS, OPS, Field, Op, element_role
from brainsurgery_jax.plan import pages
from brainsurgery_jax.wording import counted

_COLUMNS = tuple(Column(key, "") for key in ("key", "required", "default", "kind", "slices"))


def report_ops(fold: pages.Fold = pages.unfolded) -> Record:
    """All ops by family, and the operators of assert. `fold`: how text is folded to the width there is."""
    return Record((
        *show_only(Text("\n".join(pages.overview(fold)))),
        Entry("ops", [_describe(op) for op in OPS.values()]),
        Entry("asserts", [_describe(op) for op in ASSERTS.values()]),
    ))  # fmt: skip


def report_op(op: Op, fold: pages.Fold = pages.unfolded) -> Record:
    """The page of one op. `fold`: how text is folded to the width there is."""
    return Record((*show_only(Text("\n".join(pages.page(op, fold)))), *_describe(op).entries))


def report_search(word: str, found: Mapping[str, Op], fold: pages.Fold = pages.unfolded) -> Record:
    """The ops that a search found. `fold`: how text is folded to the width there is."""
    head = f"no op is named '{word}'; {counted(len(found), 'op')} with it in the name or the description:"
    lines = [head, *pages.search_table(found, fold)]
    return Record((*show_only(Text("\n".join(lines))), Entry("word", word), Entry("found", list(found))))


def _describe(op: Op) -> Record:
    keys = Grid(_COLUMNS, tuple(map(_key, pages.keys(op))))
    return Record(
        (Entry("name", op.name), Entry("family", pages.family(op)), Entry("doc", op.doc), Entry("keys", keys))
    )


def _key(field: Field) -> tuple[Value, ...]:
    required = field.default is inspect.Parameter.empty
    slices = bool((role := field.role or element_role(field.annotation)) and role.slices)
    default = None if required else cast(Value, field.default)  # what a plan can write is plain data
    return field.key, required, default, pages.kind(field), slices
