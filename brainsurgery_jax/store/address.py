"""How a checkpoint is named: a path, and what of it is meant.

`PATH` is a file or a folder. `PATH::PART` is an entry of it and all below, under the names that they have there;
`PATH::.` is all of it. `PATH::-NAME` leaves an entry out; there may be several: `PATH::PART::-NAME::-OTHER`.

`BASE + DELTA` is the checkpoint that a delta makes of its base. A remote place has a scheme: `hf://org/model@revision`.

Nothing here opens a connection: addresses are read while a plan is parsed.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.folder import WEIGHT_SUFFIXES, suffix_of

MARK = "::"
PLUS = " + "
WHOLE = "."

HUB = "BRAINSURGERY_HUB"
"""The variable of the environment that asks for inputs to be named as the hub names its models; 0 is no."""

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(?:@[^/@]+)?")

_REPOSITORY = re.compile(r"(?i:hf)://[^/]+/[^/]+/?")
_AT_MAIN = re.compile(r"^((?i:hf)://[^/]+/[^/@]+)@main(?=/|$)")
_REMOTE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://.")


class Address(NamedTuple):
    """A path, the part of the checkpoint that is meant (empty: what its format reads), and entries left out."""

    path: str
    part: str = ""
    leave_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        return MARK.join([self.path, *filter(None, [self.part]), *(f"-{name}" for name in self.leave_out)])


def parse_address(text: str) -> Address:
    """The address that a text spells. A path that is there is taken as it is, whatever is in its name."""
    if MARK not in text or os.path.exists(os.path.expanduser(text)):
        return Address(os.path.expanduser(text))
    path, *more = text.split(MARK)
    parts = [item for item in more if not item.startswith("-")]
    remedy = f"Write PATH{MARK}PART, the path of a checkpoint and the name of an entry of it."
    if not all(item.removeprefix("-") for item in more):
        raise StoreError(text, "names an entry without a name", remedy=remedy)
    if len(parts) > 1:
        raise StoreError(text, f"names more than one part: {' and '.join(parts)}", remedy=remedy)
    leave_out = tuple(item.removeprefix("-") for item in more if item.startswith("-"))
    return Address(os.path.expanduser(path), "".join(parts), leave_out)


def split_sum(path: str) -> tuple[str, str] | None:
    """The base and the delta of `BASE + DELTA`; None for any other path, and for one that is there."""
    base, plus, delta = path.rpartition(PLUS)
    if not plus or os.path.exists(path):
        return None
    return base.strip(), os.path.expanduser(delta.strip())


def split_alias(text: str) -> tuple[str, str]:
    """The alias and the address of a plan's input, `alias::address`; the alias is empty where there is none.

    The first word is an alias unless it is written like a path: with a slash, or with the suffix of a checkpoint.
    """
    head, mark, rest = text.partition(MARK)
    if not mark or "/" in head or os.sep in head or suffix_of(head) in WEIGHT_SUFFIXES:
        return "", text
    return head, rest


def is_remote(path: str) -> bool:
    """Whether a path names a place that is no path of this machine."""
    return _REMOTE.match(path) is not None


def expand_hub_name(path: str) -> str:
    """The address of a model of the hub for its plain name, `org/model` or `org/model@revision`, where the variable HUB
    asks for that and nothing lies at such a path; else the path."""
    if os.environ.get(HUB, "0") == "0" or not HUB_NAME.fullmatch(path) or os.path.lexists(path):
        return path
    return f"hf://{path}"


def is_repository(path: str) -> bool:
    """Whether a path names a whole repository of the hub, which is a folder whatever its name ends in."""
    return _REPOSITORY.fullmatch(path) is not None


def without_main(path: str) -> str:
    """The address without the branch that it means anyway, if it is one of the hub."""
    return _AT_MAIN.sub(r"\1", path)


def scheme_of(url: str) -> str:
    """The scheme of a remote address, in lower case."""
    found = _REMOTE.match(url)
    assert found is not None, url
    return found["scheme"].lower()


def without_secrets(url: str) -> str:
    """The address as messages show it: without a user, a password, a query (signatures) or a fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] if scheme_of(url) in ("http", "https") else parts.netloc
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
