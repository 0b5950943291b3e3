"""How a plan spells an op: forms, and the keys of a payload. Import them from `op`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from brainsurgery_jax.keys import Role, role_of
from brainsurgery_jax.protocol import Dest


@dataclass(frozen=True, slots=True)
class Form:
    """How a plan spells a kernel.

    `reads` are the payload keys of the tensors, in the kernel's order; `pattern` is the one that is matched, the others
    are templates filled from its match. `writes` are the keys that name the results. Without `reads` these are literal
    names. `dest`: the destination must not exist (new), must exist with the result's shape and dtype (existing), or is
    replaced whatever it was (rebind). `keys` renames parameters (`cast_` spells `dtype` as `to`).

    `optional`: keys of `reads` that may be left out. `beside`: templates without an alias mean that of the match.
    `consumes`: the matched tensor may be dropped. `counted`: how often a match counts as read. `noun` and
    `endings`: what messages call several results, and how their names may end.
    `fills`: a step says what becomes of tensors that get no value, and of values without a place (`missing`, `extra`).
    `spread`: the key of the texts of which the name of the result holds one after another; a match gives several.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    dest: Dest
    pattern: str = ""
    slices: frozenset[str] = frozenset()
    keys: tuple[tuple[str, str], ...] = ()
    optional: frozenset[str] = frozenset()
    beside: bool = False
    consumes: bool = False
    counted: int = 1
    noun: str = "results"
    endings: tuple[str, ...] = ()
    spread: str = ""
    fills: bool = False

    @property
    def match_key(self) -> str:
        """The key whose pattern is matched, or whose name is taken literally."""
        return self.pattern or (self.reads or self.writes)[0]

    @property
    def refs(self) -> tuple[str, ...]:
        """The keys that hold references, the one that is matched first."""
        return tuple(dict.fromkeys((self.match_key, *self.reads, *self.writes)))

    @property
    def own_params(self) -> frozenset[str]:
        """The parameters of a step that are not the kernel's."""
        fills = (MISSING.param, EXTRA.param) if self.fills else ()
        return frozenset((*self.refs, self.spread, *fills))

    def role(self, key: str) -> Role:
        """How the reference under a key is read."""
        slices = key in self.slices
        if not self.reads:
            return Role("name", slices)
        if key == self.match_key:
            return Role("pattern", slices)
        return Role("template", slices, beside=self.match_key if self.beside else "", read=key in self.reads)


class Field(NamedTuple):
    """One key of an op's payload."""

    key: str
    param: str
    annotation: object
    default: object
    role: Role | None

    @property
    def without_over(self) -> Field:
        """How the key is read in a payload that has no `over`."""
        plain = self.role.plain if self.role else None
        return self if plain is None else self._replace(annotation=plain, role=role_of(plain))


UNMATCHED = Field("unmatched", "unmatched", Literal["error", "keep", "drop"] | None, None, None)
"""What a step over several sets of tensors does with those that stand on one side alone: refuse, keep them as they are,
or leave them out. Not said: refuse where whole checkpoints are paired."""
IF_MISSING = Field("if_missing", "if_missing", Literal["error", "skip"], "error", None)
"""What a step does where a pattern matches nothing, or a tensor that it needs is not there: fail, or leave it out."""
MISSING = Field("missing", "missing", Literal["error", "keep"], "keep", None)
"""What a step that fills tensors does with those that its template could name and that get no value."""
EXTRA = Field("extra", "extra", Literal["error", "ignore"], "error", None)
"""What such a step does with matches that have no tensor to fill."""
