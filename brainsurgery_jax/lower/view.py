"""One step at work: what an op may ask (`View`), and its edits applied to a draft that is kept if all is right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import Diagnostic, Refusal, StoreError, did_you_mean
from brainsurgery_jax.graph.expr import Bound, Expr
from brainsurgery_jax.graph.structure import put, take
from brainsurgery_jax.lower import hints
from brainsurgery_jax.lower.outputs import inside
from brainsurgery_jax.lower.state import Draft, Space, State, World, opened
from brainsurgery_jax.op import Kernel, SinkOp
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.protocol import Dest, Flags, Item
from brainsurgery_jax.select import Match, Pattern, Ref, Template, compile_pattern, compile_template, resolve
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.base import Header, TensorInfo
from brainsurgery_jax.store.selection import choose_part

if TYPE_CHECKING:
    import numpy as np


class Unknown(Exception):
    """The step depends on what an earlier, failed step would have made: it fails too, silently."""


@lru_cache(maxsize=4096)
def _pattern(name: str | tuple[str, ...]) -> Pattern:
    return compile_pattern(name)


@lru_cache(maxsize=4096)
def _template(target: str | tuple[str, ...], pattern: Pattern) -> Template:
    return compile_template(target, pattern)


@contextmanager
def at_key(key: str) -> Iterator[None]:
    """Says of every refusal inside that it is about this key, unless the refusal knows better."""
    try:
        yield
    except Refusal as bad:
        bad.key = bad.key or key
        raise


@contextmanager
def _readable(key: str) -> Iterator[None]:
    """Makes a store's refusal of a checkpoint one of the key that names it."""
    try:
        yield
    except StoreError as bad:
        where = f"{bad.path}: tensor '{bad.tensor}'" if bad.tensor is not None else bad.path
        raise Refusal("io-input", f"{where}: {bad.problem}", key=key, hint=bad.remedy) from bad


class StepView:
    """What an op may ask of the state while its step is lowered. See `op.View`."""

    def __init__(self, state: State, step: Step, world: World):
        self.state, self.step, self.world, self.graph = state, step, world, world.graph
        self.drafts: dict[str, Draft] = {}
        self.wanted: dict[Expr, None] = {}
        self.provisional = False
        self.gone: set[str] = set()
        self.skipped = 0  # matches that a lenient step left out
        self.notes: dict[Diagnostic, None] = {}
        self.fetched: list[str] = []  # names, for the lines that `verbose` prints
        self.graph.span = step.span

    # --- aliases and names

    @property
    def default_alias(self) -> str | None:
        return self.state.default_alias

    @property
    def seed(self) -> int:
        return self.state.seed

    @property
    def flags(self) -> Flags:
        return self.state.flags

    def given(self, key: str) -> bool:
        """Whether the plan says this key of the step."""
        return (key,) in self.step.spans

    def note(self, code: str, message: str, key: str = "", hint: str = "") -> None:
        """Say something that is no mistake, but may surprise."""
        label = "" if self.step.op is None else ".".join(filter(None, (self.step.op.name, key)))
        self.notes[Diagnostic(code, f"{label}: {message}", self.step.place(key), hint, "note")] = None

    def aliases(self) -> list[str]:
        """Aliases in the order in which they came to be."""
        return [a for a in dict.fromkeys((*self.state.spaces, *self.drafts)) if a not in self.gone]

    def space(self, alias: str, key: str = "") -> Draft:
        """The draft of an alias."""
        if (draft := self.drafts.get(alias)) is not None:
            return draft
        if alias in self.gone or (space := self.state.spaces.get(alias)) is None:
            if self.state.doubtful:
                raise Unknown
            known = self.aliases()
            there = self._alias_hint(alias, known)
            raise Refusal("alias-unknown", f"unknown alias '{alias}'.{did_you_mean(alias, known)}", key=key, hint=there)
        draft = self.drafts[alias] = Draft(space)
        return draft

    def _alias_hint(self, alias: str, known: Sequence[str]) -> str:
        if not known:
            return "The plan has no inputs yet; `load` and `prefixes` make aliases."
        if any(alias in self.space(a).names for a in known):
            return f"'{alias}' is a tensor; a slice of it stands in brackets, such as '{alias}::[0:4]'."
        plain = " An alias is plain text, no pattern." if set(alias) & set("|*+?()[]\\") else ""
        return f"Known: {', '.join(known)}.{plain}"

    def names(self, alias: str) -> Sequence[str]:
        """Tensor names of an alias, in state-dict order."""
        return list(self.space(alias).names)

    def match(self, ref: Ref, key: str = "") -> list[str]:
        """Names that a pattern matches, sorted."""
        return [name for name, _ in self._matches(ref, key)]

    def _matches(self, ref: Ref, key: str) -> list[tuple[str, Any]]:
        """What a pattern matches. Where it may also match what a failed step would have made, a sink cannot judge, and
        another op goes on with the rest, if there is any."""
        space = self.space(ref.alias, key)
        with at_key(key):
            found = _pattern(ref.name).matches(space.names)
        doubted = space.unknown and (not found or isinstance(self.step.op, SinkOp))
        if (doubted and _pattern(ref.name).matches(space.unknown)) or (not found and space.tainted):
            raise Unknown
        return found

    def captures(self, ref: Ref, key: str = "") -> tuple[Pattern, list[Match]]:
        """A pattern, and the names that it matches with what it captures of each, sorted; at least one."""
        found = self._matches(ref, key)
        if not found:
            raise self._nothing(ref, key)
        return _pattern(ref.name), found

    def _nothing(self, ref: Ref, key: str) -> Refusal:
        space = self.space(ref.alias, key)
        text = ref.name if isinstance(ref.name, str) else ".".join(ref.name)
        shown = f"'{text}'" if isinstance(ref.name, str) else str(list(ref.name))
        tokens = () if isinstance(ref.name, str) else ref.name
        near = did_you_mean(text.replace("\\", ""), space.names)
        message = f"no tensor matches {shown} in '{ref.alias}' ({hints.count(space)}).{near}"
        alias = "" if ref.alias == self.default_alias else f"{ref.alias}::"
        hint = hints.of_pattern(text, space, tokens, alias) or hints.where(space)
        return Refusal("no-match", message, key=key, hint=hint)

    def rename(
        self, source: Ref, targets: Mapping[str, Ref], shared: Collection[str] = ()
    ) -> list[tuple[str, tuple[str, ...]]]:
        """For every match of `source`, sorted: its name, and the names that the templates make of it. Under the keys
        that are `shared` several matches may have one name: it is only read. A lenient step leaves out the matches for
        which there is nothing to read."""
        key = self._key(source)
        matches = self._matches(source, key)
        if not matches:
            raise self._nothing(source, key)
        filled = []
        for target_key, target in targets.items():
            self.space(target.alias, target_key)
            with at_key(target_key):
                template = _template(target.name, _pattern(source.name))
                filled.append([template.fill(name, binding) for name, binding in matches])
        rows = list(zip((name for name, _ in matches), *filled, strict=True))
        if shared and self.step.lenient:
            read = [(at, targets[k].alias) for at, k in enumerate(targets, 1) if k in shared]
            there = [row for row in rows if all(self._may_exist(alias, row[at]) for at, alias in read)]
            self.skipped += len(rows) - len(there)
            rows = there
        for at, target_key in enumerate(targets, 1):
            if target_key not in shared:
                hints.refuse_collisions([row[0] for row in rows], [row[at] for row in rows], target_key)
        return [(row[0], row[1:]) for row in rows]

    def _may_exist(self, alias: str, name: str) -> bool:
        """Whether a tensor exists, or might, had no step failed."""
        space = self.space(alias)
        return name in space.names or space.tainted or name in space.unknown

    def _key(self, ref: Ref) -> str:
        inner = (item for v in self.step.params.values() if isinstance(v, Mapping) for item in v.items())
        return next((k.rstrip("_") for k, v in (*self.step.params.items(), *inner) if v is ref), "")

    def literal(self, ref: Ref, key: str = "") -> str:
        """The name of a reference that is taken literally."""
        self.space(ref.alias, key)
        assert isinstance(ref.name, str)
        return ref.name

    # --- values

    def fetch(self, alias: str, name: str, key: str = "", reads: int = 1) -> Expr:
        """The value of a tensor; counts as a read (or as several)."""
        space = self.drafts.get(alias) or self.space(alias, key)
        expr = space.names.get(name)
        if expr is None:
            if space.tainted or name in space.unknown:
                raise Unknown
            near = did_you_mean(name, space.names)
            message = f"'{name}' does not exist in '{alias}' ({hints.count(space)}).{near}"
            hint = hints.of_destination(self.step.op, key) or hints.where(space)
            raise Refusal("tensor-missing", message, key=key, hint=hint)
        if expr.kind == "poison":
            raise Unknown
        self.provisional |= expr.provisional
        if self.state.flags.verbose:
            self.fetched.append(name)
        space.reads[name] = space.reads.get(name, 0) + reads
        return expr

    def has(self, alias: str, name: str) -> bool:
        """Whether a tensor exists; if so it counts as a read."""
        space = self.space(alias)
        if name not in space.names:
            if space.tainted or name in space.unknown:
                raise Unknown
            return False
        space.reads[name] = space.reads.get(name, 0) + 1
        return True

    def count(self, alias: str, name: str) -> tuple[int, int]:
        """How often a tensor was read and written."""
        space = self.space(alias)
        return space.reads.get(name, 0), space.writes.get(name, 1)

    def select(self, ref: Ref, key: str = "", required: bool = True) -> list[Item]:
        """The tensors that a pattern matches, sorted by name, sliced as the reference says."""
        names = self.match(ref, key)
        if not names and required:
            raise self._nothing(ref, key)
        return [Item(name, self.slice(self.fetch(ref.alias, name, key), ref, key)) for name in names]

    def one(self, ref: Ref, key: str = "") -> Item:
        """The only tensor that a pattern matches."""
        names = self.match(ref, key)
        if len(names) > 1:
            shown = ", ".join(f"'{n}'" for n in names[:3]) + (", ..." if len(names) > 3 else "")
            raise Refusal(
                "many-matches", f"'{ref}' must match exactly one tensor, it matches {len(names)}: {shown}", key=key,
                hint="Name one of them in full; a dot that is just a dot is written `\\.`.",
            )  # fmt: skip
        return self.select(ref, key)[0]

    def original(self, alias: str, key: str = "") -> Mapping[str, Expr]:
        """The tensors that an alias had when it was made: those of its checkpoint, of its tree, or none."""
        space = self.space(alias, key)
        if space.tainted or space.unknown:
            raise Unknown
        return space.original

    def slice(self, expr: Expr, ref: Ref, key: str = "") -> Expr:
        """A value, or the part of it that the reference's slice selects."""
        if ref.index is None:
            return expr
        return self._call(take, (expr,), {"index": self._index(ref, expr.aval, key)})

    def _index(self, ref: Ref, aval: Aval, key: str) -> Any:
        with at_key(key):
            index = resolve(ref.index, aval.shape)
        if ref.index is not None and aval.size and 0 in index.shape:
            message, hint = hints.of_empty(ref.index, index)
            self.note("slice-empty", message, key, hint)
        return index

    def update(self, whole: Expr, ref: Ref, value: Expr, key: str = "") -> Expr:
        """`whole` with `value` in the place that the reference's slice selects (everywhere without one)."""
        if ref.index is None and value.aval == whole.aval:
            return value
        index = self._index(ref, whole.aval, key)
        part = Aval(index.shape, whole.aval.dtype)
        if value.aval != part:
            what = "the slice" if ref.index is not None else "the destination"
            hint = (
                "Values are written as they are: neither broadcast nor cast. Reshape, slice or cast the source first."
            )
            raise Refusal("dest-differs", f"{what} is {part}, but the result is {value.aval}", key=key, hint=hint)
        return value if index.full else self._call(put, (whole, value), {"index": index})

    def apply(self, kernel: Kernel, *srcs: Expr, **params: Any) -> Any:
        """The result of a kernel, or a tuple of its results."""
        try:
            call = self._call(kernel, srcs, params)
        except Refusal as bad:
            names = [name for src in srcs if (name := self._name(src))]
            about = f" ({', '.join(names)})" if names else ""
            raise Refusal(bad.code, bad.message + about, key=bad.key, hint=bad.hint) from bad
        return tuple(self.graph.pick(call, i) for i in range(len(call.avals))) if len(call.avals) > 1 else call

    def _call(self, kernel: Kernel, srcs: tuple[Expr, ...], params: Mapping[str, Any]) -> Expr:
        return self.graph.call(kernel, srcs, params)

    def _name(self, expr: Expr) -> str:
        """A name of a value, or of the tensor that it is a slice of; empty if it has none."""
        whole = expr.srcs[0] if expr.kernel is take else expr
        found = (f"'{a}::{n}'" for a in self.aliases() for n, e in self.space(a).names.items() if e is whole)
        return next(found, "")

    def constant(self, value: np.ndarray, dtype: DType) -> Expr:
        """A small array that the plan spells out."""
        return self.graph.const(value, dtype)

    def number(self, expr: Expr, bound: int) -> int:
        """The value of a scalar that only data can tell; not known yet: its bound, and the step is asked again."""
        if (value := self.state.known.get(expr)) is not None:
            return value
        self.wanted[expr] = None
        self.provisional = True
        return Bound(bound)

    def open(self, path: str, key: str = "", format: str | None = None) -> Mapping[str, Expr]:
        """The tensors of a checkpoint, or of what an earlier `save` of this plan will write there."""
        place = self.world.key(path)
        if place in self.state.images:
            if (image := self.state.images[place]) is None:
                raise Unknown
            return self._part(image, path, key)
        for saved in self.state.publications:
            if inside(place, self.world.key(saved.path)):
                message = f"'{path}' lies inside or around '{saved.path}', which this plan saves"
                hint = "Load what was saved as a whole, by its own path; or load it in a plan of its own, afterwards."
                raise Refusal("load-inside-save", message, key=key, hint=hint)
        with _readable(key):
            for note in self.world.open(path, format).header.notes:
                self.note(note.code, note.message, key, note.hint)
            return opened(self.world, path, format).names

    def _part(self, image: Mapping[str, Expr], path: str, key: str) -> Mapping[str, Expr]:
        """The tensors of an image that an address means."""
        header = Header(path, (), {name: TensorInfo(expr.aval, 0, 0) for name, expr in image.items()}, {})
        with _readable(key):
            names = choose_part(header, parse_address(path)).chosen(image)
        return {new: image[old] for new, old in names.items()}

    # --- edits

    def bind(self, alias: str, name: str, expr: Any, dest: Dest) -> bool:
        """Give a tensor its name, if the destination is as it should be; whether it replaced one. Counts as a write."""
        space = self.drafts.get(alias) or self.space(alias)
        old = space.names.get(name)
        if dest == "new" and old is not None:
            hint = "Delete or move it first, or write to another name."
            raise Refusal(
                "dest-exists", f"'{name}' exists already in '{alias}'", key=self._dest_key(alias, name), hint=hint
            )
        if dest == "existing":
            assert old is not None
            if expr.aval != old.aval:
                raise Refusal("dest-differs", f"'{name}' is {old.aval}, but the result is {expr.aval}")
        space.names[name] = expr
        if space.unknown:
            space.unknown -= {name}
        if old is None:
            space.reads.pop(name, None)
            space.writes.pop(name, None)
        else:
            space.writes[name] = space.writes.get(name, 1) + 1
        return old is not None

    def _dest_key(self, alias: str, name: str) -> str:
        """The key that a destination comes from; empty where two keys could have made it."""
        keys = [k for k in ("to", "target_a", "target_b", "target") if k in self.step.params]
        refs = {k: self.step.params[k] for k in keys if k != "target" or len(keys) == 1}
        named = [k for k, ref in refs.items() if isinstance(ref, Ref) and ref.name == name]
        return (named or [*refs, ""])[0] if named or len(refs) == 1 else ""

    def drop(self, alias: str, name: str) -> None:
        """Forget a tensor."""
        space = self.space(alias)
        space.names.pop(name)
        space.reads.pop(name, None)
        space.writes.pop(name, None)

    def move(self, moves: Sequence[tuple[str, str, str, str]]) -> None:
        """Rename tensors, all at once; within an alias they keep their places."""
        arriving = [(to_alias, to_name, self.fetch(alias, name)) for alias, name, to_alias, to_name in moves]
        leaving: dict[str, dict[str, str | None]] = {}  # by alias, the new name of each tensor that stays there
        for alias, name, to_alias, to_name in moves:
            leaving.setdefault(alias, {})[name] = to_name if alias == to_alias else None
        for _, name, to_alias, to_name in moves:
            if to_name in self.space(to_alias).names and to_name not in leaving.get(to_alias, ()):
                hint = "Delete or move it first."
                raise Refusal(
                    "dest-exists",
                    f"'{to_name}' exists already in '{to_alias}', so '{name}' cannot take it",
                    key="to",
                    hint=hint,
                )
        for alias, renamed in leaving.items():
            space = self.space(alias)
            named = [(renamed.get(n, n), e) for n, e in space.names.items()]
            space.names = {n: e for n, e in named if n is not None}
            for name in renamed:
                space.reads.pop(name, None)
                space.writes.pop(name, None)
        for alias, name, expr in arriving:
            space = self.space(alias)
            space.names[name] = expr
            space.reads[name] = 1

    def add_alias(self, alias: str, tensors: Mapping[str, Any] | None, path: str | None) -> None:
        """Make an alias, empty or filled."""
        if alias in self.aliases():
            hint = "Choose another with `alias: NAME`, or remove the old one with `prefixes`."
            raise Refusal("alias-exists", f"alias '{alias}' exists already", key="alias", hint=hint)
        metadata: Mapping[str, str] = {}
        if path is not None and self.world.key(path) not in self.state.images:
            metadata = self.world.open(path).header.metadata
        self.drafts[alias] = Draft(Space(tensors or {}, path, metadata))
        self.gone.discard(alias)

    def drop_alias(self, alias: str, key: str = "alias") -> None:
        """Forget an alias."""
        self.space(alias, key)
        self.drafts.pop(alias)
        self.gone.add(alias)

    def rename_alias(self, alias: str, to: str) -> None:
        """Give an alias another name."""
        draft = self.space(alias, "from")
        if to in self.aliases():
            raise Refusal("alias-exists", f"alias '{to}' exists already", key="to",
                          hint="Choose another name, or remove that one first.")  # fmt: skip
        self.drop_alias(alias)
        self.drafts[to] = draft

    def spaces(self) -> dict[str, Space]:
        """The spaces after the step."""
        return {a: self.drafts[a].freeze() if a in self.drafts else self.state.spaces[a] for a in self.aliases()}
