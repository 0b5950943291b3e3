"""What the name of a weight file says: which shard of how many, and of which variant."""

from __future__ import annotations

import re
from typing import NamedTuple

from brainsurgery_jax.store.folder import suffix_of

VARIANT = r"(?:fp|bf|f|int|nf)\d+|(?:non[_-]?)?ema"
_STEM = re.compile(rf"(?P<stem>.*?)(?:\.(?P<variant>{VARIANT}))?")
_SHARD = re.compile(rf"(?P<stem>.+?)[-_.](?P<number>\d+)-of-(?P<total>\d+)(?:\.(?P<variant>{VARIANT}))?")
_SHARD_LIKE = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\w+)-of-(?P<total>\d+).*")


class WeightFile(NamedTuple):
    """What the name of a weight file tells. `total`: it is one of so many shards. `digits` is where its number stands
    in the name, None where the name has the form of a shard's and no number."""

    name: str
    stem: str
    variant: str
    total: int | None = None
    digits: tuple[int, int] | None = None

    @property
    def number(self) -> int | None:
        """The number of the shard."""
        return None if self.digits is None else int(self.name[slice(*self.digits)])

    def sibling(self, number: int) -> str:
        """The name of another shard."""
        assert self.digits is not None, "it is a shard"
        start, stop = self.digits
        return f"{self.name[:start]}{number:0{stop - start}d}{self.name[stop:]}"


def read_name(name: str) -> WeightFile:
    """What the name of a weight file tells; nothing if it is empty, as that of a path with a slash at its end is."""
    bare = name[: len(name) - len(suffix_of(name))]
    exact = _SHARD.fullmatch(bare)
    shard = exact or _SHARD_LIKE.fullmatch(bare)
    stem = _STEM.fullmatch(shard["stem"] if shard else bare)
    assert stem is not None, "everything matches"
    variant = stem["variant"] or (exact and exact["variant"]) or ""
    total = None if shard is None else int(shard["total"])
    return WeightFile(name, stem["stem"], variant, total, None if exact is None else exact.span("number"))


def is_shard(name: str) -> bool:
    """Whether a file is one of several, by its name."""
    return read_name(name).total is not None
