"""The request for a conversion, and the facts about its source."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.layout.config import read_config
from brainsurgery_jax.layout.expressions import Config, Value
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.detect import open_source

LAYOUT, CONFIG = "brainsurgery.layout", "brainsurgery.config"
"""Metadata of a converted checkpoint: how it was converted, and the model's config.json."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller asks for. None: recognise it, or keep it as it is. `scan` is short for that option of a
    layout."""

    layout: str | None = None
    to: str | None = None
    dtype: str | None = None
    options: Mapping[str, Value] = field(default_factory=dict)
    config: str | None = None
    overwrite: bool = False
    verify: bool = False
    with_opt_state: bool = False
    shard: str | None = None
    overflow: str | None = None
    dequantize: str | None = None
    scan: bool | None = None

    def __post_init__(self) -> None:
        scan = {} if self.scan is None else {"scan": self.scan}
        object.__setattr__(self, "options", {**(self.options or {}), **scan})


class RequestKeywords(TypedDict, total=False):
    """The fields of `Request` as keywords, for the public verb."""

    layout: str | None
    to: str | None
    dtype: str | None
    options: Mapping[str, Value]
    config: str | None
    overwrite: bool
    verify: bool
    with_opt_state: bool
    shard: str | None
    overflow: str | None
    dequantize: str | None
    scan: bool | None


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What headers, metadata and config.json contain about a checkpoint."""

    path: str
    avals: Mapping[str, Aval]
    metadata: Mapping[str, str]
    config: Config | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors, in order."""
        return tuple(self.avals)

    @property
    def earlier(self) -> Mapping[str, object]:
        """The record of an earlier conversion: the layout's name and options, and the tied copies in its source."""
        return _mapping(self.metadata.get(LAYOUT)) or {}

    @property
    def earlier_ties(self) -> tuple[str, ...]:
        """The tied copies in the source of an earlier conversion."""
        tied = self.earlier.get("tied")
        return tuple(map(str, tied)) if isinstance(tied, list) else ()

    @property
    def model(self) -> str | None:
        """The `model_type` of config.json."""
        named = (self.config or {}).get("model_type")
        return named if isinstance(named, str) else None


def look(path: str, config: str | None) -> SourceInfo:
    """Read the facts about a checkpoint. Raises StoreError, or PlanError for a config.json that cannot be read."""
    with closing(open_source(path)) as source:
        avals = {name: info.aval for name, info in source.header.tensors.items()}
        metadata = source.header.metadata
        try:
            found = _config(source.header.side_folder or path, config, metadata)
        except Refusal as bad:
            raise PlanError([Diagnostic(bad.code, bad.message, hint=bad.hint)]) from bad
    return SourceInfo(path, avals, metadata, found)


def _config(path: str, given: str | None, metadata: Mapping[str, str]) -> Config | None:
    """The config.json that was given, that is in the checkpoint's folder, or that its metadata holds."""
    if given is not None:
        return read_config(given)
    place = Path(parse_address(path).path)
    beside = (place if place.is_dir() else place.parent) / "config.json"
    return read_config(str(beside)) if beside.is_file() else _mapping(metadata.get(CONFIG))


def _mapping(text: str | None) -> dict[str, object] | None:
    if not text:
        return None
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
