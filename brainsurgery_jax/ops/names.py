"""Ops on names: they compute nothing and change only the state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictStr

from brainsurgery_jax import documents
from brainsurgery_jax.config_patch import read_change
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.op import Makes, Pattern, Role, Template, control
from brainsurgery_jax.protocol import (
    AddAlias,
    Bind,
    Drop,
    DropAlias,
    Edit,
    Expand,
    MoveAll,
    Publish,
    RenameAlias,
    Say,
    Substep,
    View,
)
from brainsurgery_jax.select import Ref

PathText = Annotated[Text, Field(description="path, relative to the working directory")]


def _check_change(value: Mapping[str, object]) -> Mapping[str, object]:
    read_change(value)
    return value


Options = Annotated[Mapping[str, object], Field(description="as in an output")]
ConfigChange = Annotated[Mapping[str, object], AfterValidator(_check_change), Field(description="as in an output")]
Texts = Annotated[Mapping[str, StrictStr], Field(description="as in an output")]


Asserts = Annotated[tuple[object, ...], Field(description="what must hold of what is written: `[{finite: '.*'}]`")]


@dataclass(frozen=True)
class OutputKeys(KeyGroup):
    """How an output is written."""

    format: Text | None = None
    shard: Text | None = None
    overwrite: StrictBool = False
    sidecars: StrictBool = True
    config: ConfigChange | None = None
    metadata: Texts | None = None
    options: Options | None = None
    asserts: Asserts = ()

    def publish(self, path: str, alias: str, names: tuple[str, ...] | None = None) -> Publish:
        """The edit that writes an alias, or some of its tensors without side files."""
        return Publish(
            path, alias, names, self.format, self.shard, self.overwrite, self.sidecars and names is None,
            self.config or {}, self.metadata or {}, self.options or {},
        )  # fmt: skip

    def judge(self, alias: str) -> Iterator[Edit]:
        """The edits that ask whether the asserts hold, whose default alias is the one that is written."""
        if self.asserts:
            yield Expand((Substep("assert", {"all": list(self.asserts)}),), alias)


@control()
def move(view: View, *, from_: Pattern, to: Template) -> Iterator[Edit]:
    """Rename tensors. All moves of a step happen at once, so swaps and shifts need no order.

    Leaves of a tree that hold no tensor, such as None, are matched and renamed with them.
    Example: `move: {from: 'transformer\\.(.+)', to: 'model.\\1'}`
    """
    rows = view.rename(from_, {"to": to}, others=True)
    yield MoveAll(from_.alias, [name for name, _ in rows], to.alias, [target for _, (target,) in rows])


@control()
def delete(view: View, *, target: Pattern) -> Iterator[Edit]:
    """Remove tensors.

    Leaves of a tree that hold no tensor, such as None, are matched and removed with them.
    Example: `delete: {target: '.*\\.inv_freq'}`
    """
    others = view.others(target)
    for name, _ in view.select(target, "target", required=not others):
        yield Drop(target.alias, name)
    for name in others:
        yield Drop(target.alias, name)


@control(makes=Makes("alias", unless="to"))
def prefixes(
    view: View,
    *,
    mode: Literal["list", "add", "remove", "rename"] = "list",
    alias: Text | None = None,
    from_: Text | None = None,
    to: Text | None = None,
) -> Iterator[Edit]:
    """List, add, remove or rename aliases (sets of tensors).

    Example: `prefixes: {mode: add, alias: work}`
    """
    given = {key for key, value in (("alias", alias), ("from", from_), ("to", to)) if value is not None}
    needed = {"list": set(), "add": {"alias"}, "remove": {"alias"}, "rename": {"from", "to"}}[mode]
    if given != needed:
        keys = " and ".join(f"'{k}'" for k in sorted(needed)) or "no other key"
        found = " and ".join(f"'{k}'" for k in sorted(given)) or "none"
        hint = "Modes: list; add and remove with `alias`; rename with `from` and `to`."
        raise Refusal("prefixes-keys", f"mode '{mode}' takes {keys}, got {found}", key="mode", hint=hint)
    match mode:
        case "add":
            yield AddAlias(str(alias))
        case "remove":
            yield DropAlias(str(alias))
        case "rename":
            yield RenameAlias(str(from_), str(to))
        case "list":
            yield Say(documents.Text("Aliases:\n" + "\n".join(f"  {a}::" for a in sorted(view.aliases()))))


@control(shorthand="path", makes=Makes("alias", unless="to"), checkpoint="path")
def load(
    view: View,
    *,
    path: PathText,
    alias: Text | None = None,
    to: Annotated[Ref, Role("name", beside="alias", fallback="model")] | None = None,
    format: Literal["auto", "safetensors", "torch", "numpy"] = "auto",
) -> Iterator[Edit]:
    """Open a checkpoint under a new alias, or one tensor of a file under a literal name (`to`).

    `format` is needed if the suffix of a file does not determine it.
    Example: `load: {path: tuned.safetensors, alias: tuned}`
    """
    tensors = view.open(path, "path", None if format == "auto" else format)
    if to is None:
        yield AddAlias(alias or view.default_alias or "model", tensors, path)
        return
    if len(tensors) != 1:
        found = f"'{path}' holds {len(tensors)} tensors; `to` takes a file with exactly one"
        raise Refusal("load-one", found, key="path", hint="Load the whole file under an alias and copy what you need.")
    if alias is not None and to.alias != alias:
        raise Refusal("load-alias", f"alias '{alias}' and `to` in '{to.alias}' disagree", key="alias",
                      hint="Say the alias once: in `alias`, or in `to`.")  # fmt: skip
    if to.alias not in view.aliases():
        yield AddAlias(to.alias)
    yield Bind(to.alias, view.literal(to, "to"), next(iter(tensors.values())))


@control(shorthand="path", checkpoint="path")
def save(
    view: View,
    *,
    path: PathText,
    alias: Text | None = None,
    target: Annotated[Ref, Role("name", beside="alias")] | None = None,
    how: OutputKeys,
) -> Iterator[Edit]:
    """Write the current tensors of an alias (or one tensor, `target`), published with the outputs after all asserts.

    It takes the keys of an output. A single tensor is written without side files.
    Example: `save: {path: out/snapshot.safetensors, alias: model}`
    """
    if target is not None:
        name = view.literal(target, "target")
        view.fetch(target.alias, name, "target")
        yield how.publish(path, target.alias, (name,))
        yield from how.judge(target.alias)
        return
    known = view.aliases()
    chosen = alias or view.default_alias or (known[0] if len(known) == 1 else None)
    if chosen is None:
        names = ", ".join(f"'{a}'" for a in known)
        raise Refusal(
            "save-ambiguous", f"which alias should be saved? There are {names or 'none'}", key="alias",
            hint="Add `alias: NAME`.",
        )  # fmt: skip
    yield how.publish(path, chosen)
    yield from how.judge(chosen)
