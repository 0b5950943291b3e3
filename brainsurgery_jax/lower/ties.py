"""Output tables that a step keeps as they are or leaves out because a model on the other side has its own tied to the
table of words: the two are a pair all the same, under two names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.families.compare import tied_table
from brainsurgery_jax.lower.configs import read_config
from brainsurgery_jax.lower.edits import Drafts
from brainsurgery_jax.lower.pairing import Sets
from brainsurgery_jax.plan.source import flow_yaml
from brainsurgery_jax.protocol import Pairing


class TiedHead(NamedTuple):
    """An output table of one alias, and the table that another one, which is tied, uses in its place."""

    alias: str
    head: str
    tied: str
    wanted: str
    table: str

    def describe(self, unmatched: str) -> str:
        """What becomes of it under `unmatched: keep` or `drop`, and why it has no partner."""
        fate = {"keep": "is kept as it is", "drop": "takes no part in this step"}[unmatched]
        return (
            f"'{self.head}' of '{self.alias}' {fate}: '{self.tied}' has no '{self.wanted}' because it is tied, "
            f"'{self.table}' takes its place there"
        )

    @property
    def hint(self) -> str:
        """The step that gives the tied model an output table of its own."""
        ends = {"from": f"{self.tied}::{self.table}", "to": f"{self.tied}::{self.wanted}"}
        return f"To pair the two, write `copy: {flow_yaml(ends)}` as a step before this one."


def find_tied_heads(drafts: Drafts, sets: Sets, pairing: Pairing) -> Iterator[TiedHead]:
    """The output tables that stand alone because the other side is tied. Raises Refusal for a config that is no
    JSON."""
    partners = dict.fromkeys(sets.targets[key].alias for key in sets.read)
    alone = [
        (sets.source.alias, row[0], sets.targets[key].alias, sets.name(row, key))
        for row in pairing.alone
        for key in sets.read
    ]
    alone += [(o.alias, o.name, sets.source.alias, o.source) for o in pairing.others if o.source is not None]
    configs = {alias: _config(drafts, alias) for alias in (sets.source.alias, *partners) if alone}
    for alias, name, lacking, wanted in alone:
        if (config := configs[lacking]) is None:
            continue
        avals = {n: e.aval for n, e in drafts.space(lacking).names.items()}
        if (table := tied_table(config, avals, wanted)) is not None:
            yield TiedHead(alias, name, lacking, wanted, table)


def _config(drafts: Drafts, alias: str) -> Mapping[str, object] | None:
    found = read_config(drafts.space(alias).extras, drafts.world)
    return found[1] if found is not None and isinstance(found[1], dict) else None
