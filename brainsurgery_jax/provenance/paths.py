"""Paths in a lock: relative to its folder, so that nothing in it tells of a machine or of who used it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from brainsurgery_jax.op import OPS, ControlOp
from brainsurgery_jax.store.address import MARK, PLUS, split_sum

_ENVIRONMENT = ("${env.", "${oc.env:")


def relate(path: str, folder: str) -> str:
    """A path as a lock in that folder has it: relative, without what an address has beside its path. Of one that lies
    elsewhere on the machine only the name is kept, since the way there tells of home folders."""
    head, mark, part = path.partition(MARK)
    if (both := split_sum(head)) is not None:
        return PLUS.join(relate(summand, folder) for summand in both) + mark + part
    if "://" in head:
        scheme, host, place, _, _ = urlsplit(head)
        return urlunsplit((scheme, host.rpartition("@")[2], place, "", "")) + mark + part
    above, name = os.path.split(os.path.abspath(os.path.expanduser(head)))
    place, home = os.path.join(os.path.realpath(above), name), os.path.realpath(os.path.expanduser("~"))
    common = os.path.commonpath([place, os.path.abspath(folder)])
    if common == os.path.dirname(common) or home.startswith(common + os.sep):
        return os.path.basename(place) + mark + part
    return os.path.relpath(place, os.path.abspath(folder)).replace(os.sep, "/") + mark + part


def locate(path: str, folder: str) -> str:
    """The path that a lock in that folder means."""
    head, mark, part = path.partition(MARK)
    if PLUS in head and not os.path.exists(os.path.join(folder, head)):
        return PLUS.join(locate(summand, folder) for summand in head.split(PLUS)) + mark + part
    return path if "://" in path else os.path.normpath(os.path.join(folder, path))


def hides_environment(data: Any) -> bool:
    """Whether plain data refers to a value of the environment."""
    match data:
        case str():
            return any(head in data for head in _ENVIRONMENT)
        case Mapping():
            return any(map(hides_environment, (*data, *data.values())))
        case list() | tuple():
            return any(map(hides_environment, data))
    return False


def written_paths(plan: Mapping[str, Any]) -> list[str]:
    """The paths of the checkpoints that a resolved plan writes, in the order in which they are published: those of
    `save` steps, then those of outputs. One that is written twice counts once."""
    found: dict[str, None] = {}

    def note(path: str) -> str:
        found[path] = None
        return path

    for step in plan.get("transforms", ()):
        if is_save(step):
            map_step_path(step, note)
    outputs = plan.get("outputs", [plan["output"]] if "output" in plan else [])
    for output in outputs if isinstance(outputs, list) else ():
        note(output["path"] if isinstance(output, Mapping) else output)
    return list(found)


def is_save(step: Any) -> bool:
    """Whether a step writes a checkpoint."""
    return isinstance(step, Mapping) and "save" in step


def map_step_path(step: Any, change: Callable[[str], str]) -> Any:
    """A step with another path of the checkpoint that it loads or saves, if it does."""
    if not isinstance(step, Mapping) or len(step) != 1:
        return step
    ((name, payload),) = step.items()
    op = OPS.get(name)
    if not isinstance(op, ControlOp) or not op.checkpoint:
        return step
    if isinstance(payload, str):
        return step if hides_environment(payload) else {name: change(payload)}
    path = payload.get(op.checkpoint) if isinstance(payload, Mapping) else None
    if not isinstance(path, str) or hides_environment(path):
        return step
    return {name: {**payload, op.checkpoint: change(path)}}
