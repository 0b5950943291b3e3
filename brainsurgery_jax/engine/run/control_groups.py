"""The memory that control groups of Linux leave to this process. Every group around it has a limit of its own.

Source: the manual pages cgroups(7) and proc(5), and the kernel's documentation of both versions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


class Version(NamedTuple):
    """The files of a group: its limit, what is used, and of what kinds that is; and the kinds that may be dropped."""

    limit: str
    used: str
    stat: str
    pages: tuple[str, ...]


V2 = Version("memory.max", "memory.current", "memory.stat", ("active_file", "inactive_file"))
V1 = Version(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", ("total_active_file", "total_inactive_file")
)


def bytes_left(process: str = "/proc/self") -> list[int]:
    """Bytes that each group around a process has left, of groups with a limit. `process`: its folder in `/proc`.

    A group counts cached pages of files as used; the system frees them on demand, so they are not counted here.
    """
    places = dict(_paths(process))
    found = (
        _left(folder, version)
        for version, root, mount in _mounts(process)
        if version in places
        for folder in _folders(mount, _below(places[version], root))
    )
    return [left for left in found if left is not None]


def _paths(process: str) -> Iterator[tuple[Version, str]]:
    """The path of the group of a process that counts memory, by version. Lines: `number:controllers:path`."""
    for line in read_text(f"{process}/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            yield V2, path
        elif "memory" in controllers.split(","):
            yield V1, path


def _mounts(process: str) -> Iterator[tuple[Version, str, str]]:
    """Where groups are mounted: version, the group that is the root of the mount, and the mount point."""
    for line in read_text(f"{process}/mountinfo").splitlines():
        place, _, system = line.partition(" - ")
        fields, (kind, _, options) = place.split(), (*system.split(), "", "", "")[:3]
        if len(fields) >= 5 and (kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(","))):
            yield V2 if kind == "cgroup2" else V1, _unescape(fields[3]), _unescape(fields[4])


def _below(path: str, root: str) -> str:
    """The path of a group from the root of a mount on; the root itself where the group lies elsewhere, as it seems to
    in a container that is shown the path of its host."""
    inner = os.path.relpath(path, root)
    return "" if inner == "." or inner.split("/")[0] == ".." else inner


def _folders(mount: str, inner: str) -> Iterator[str]:
    """The folders of a group and of all groups around it."""
    parts = inner.split("/") if inner else []
    for count in range(len(parts), -1, -1):
        yield os.path.join(mount, *parts[:count])


def _left(folder: str, version: Version) -> int | None:
    """Bytes that a group has left; None if it has no limit."""
    most = _number(f"{folder}/{version.limit}")
    if most is None:
        return None
    kinds = dict(line.split(maxsplit=1) for line in read_text(f"{folder}/{version.stat}").splitlines() if " " in line)
    pages = sum(int(kinds.get(name, 0)) for name in version.pages)
    return max(0, most - (_number(f"{folder}/{version.used}") or 0) + pages)


def _unescape(path: str) -> str:
    """A path of mountinfo, in which spaces and the like are octal numbers."""
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, letter)
    return path


def _number(path: str) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None


def read_text(path: str) -> str:
    """What a file of the system says; nothing if there is none."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
