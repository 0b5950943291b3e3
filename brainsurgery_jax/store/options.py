"""The options of an output that belong to its format alone, and how to read their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from brainsurgery_jax.store.sizes import parse_size


class Option(NamedTuple):
    """A key of an output's `options:`. `read` returns its value, or raises ValueError with the expected form."""

    doc: str
    example: str
    read: Callable[[object], object]


def read_flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    return value


def read_mapping(value: object) -> dict[str, object]:
    """A mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {value!r}")
    return value


def read_version(value: object) -> str:
    """A version of the API of orbax."""
    if value not in ("v0", "v1"):
        raise ValueError(f"expected v0 or v1, got {value!r}")
    return value


def read_chunk(value: object) -> int | None:
    """A size in bytes; None for none."""
    if not isinstance(value, str):
        raise ValueError(f"expected a size, got {value!r}")
    return parse_size(value)


def read_names(value: object) -> object:
    """A list of names, or `all`."""
    if value != "all" and not (isinstance(value, list) and all(isinstance(name, str) and name for name in value)):
        raise ValueError(f"expected a list of names, or all, got {value!r}")
    return value


NESTED = {
    "nested": Option("Whether tensors are written into the containers of their input.", "true", read_flag),
    "keep": Option("Values of the input to write beside them, by name, or all; implies nested.", "[epoch]", read_names),
}
