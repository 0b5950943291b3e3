"""Sizes in bytes as the values of options."""

from __future__ import annotations

import typer

from brainsurgery_jax.store.sizes import parse_size


def size_of(text: str | None, option: str) -> int | None:
    """The bytes that the value of an option stands for; None for none. Raises BadParameter."""
    try:
        return None if text is None else parse_size(text)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint=option) from bad
