"""Contexts that add the key of a step to what is refused under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from brainsurgery_jax.errors import Refusal, StoreError


@contextmanager
def at_key(key: str) -> Iterator[None]:
    """A context that sets the key of refusals, unless they have one."""
    try:
        yield
    except Refusal as bad:
        bad.key = bad.key or key
        raise


@contextmanager
def readable(key: str) -> Iterator[None]:
    """A context that turns a store's error into a refusal of the key that names the checkpoint."""
    try:
        yield
    except StoreError as bad:
        where = f"{bad.path}: tensor '{bad.tensor}'" if bad.tensor is not None else bad.path
        raise Refusal("io-input", f"{where}: {bad.problem}", key=key, hint=bad.remedy) from bad
