"""What a plan may read beside checkpoints (other plans, layouts, configs, the environment), where that is limited.

Checkpoints are opened by a world (`world.Files`), which has limits of its own. A plan within a plan is read while the
outer one is parsed or lowered, so the limit holds for a block of code: that of a front end which runs plans of others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_CHECK: ContextVar[Callable[[str], object] | None] = ContextVar("check of paths", default=None)


@contextmanager
def limit_reads(check: Callable[[str], object]) -> Iterator[None]:
    """A block in which plans see no environment, and read only files that `check` accepts: it raises for others."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check_read(path: str) -> None:
    """Raise what the limit raises, if there is one, for a file that it refuses."""
    if (check := _CHECK.get()) is not None:
        check(path)


def environment() -> Mapping[str, str]:
    """The environment as plans see it: empty where reading is limited."""
    return os.environ if _CHECK.get() is None else {}
