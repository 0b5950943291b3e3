"""What the readers of parts of a mergekit configuration need of the one that reads the whole, and collects mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from brainsurgery_jax.plan.source import Map, Node, Scalar

FORM = "import-form"
UNSUPPORTED = "import-unsupported"


class ConfigReader(Protocol):
    """Reads a configuration, and collects its mistakes and notes."""

    def complain(self, message: str, node: Node, hint: str = "", code: str = FORM) -> None:
        """Collect a mistake."""
        ...

    def note(self, key: Scalar, what: str) -> None:
        """Note what a key does not do."""
        ...

    def check_keys(self, node: Map, keys: Sequence[str], where: str) -> None:
        """Refuse a key that is misspelt or misplaced, and note any other unknown key, which mergekit ignores."""
        ...

    def model(self, node: Node) -> str:
        """The path of a model, with `+` and that of an adapter."""
        ...
