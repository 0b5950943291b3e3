"""The view of a step at work: the implementation of `View` on a draft of the state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.codes import Block
from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import Diagnostic, Refusal
from brainsurgery_jax.graph.expr import Bound, Expr, walk
from brainsurgery_jax.graph.structure import put, take
from brainsurgery_jax.lower import hints, matches, pairing
from brainsurgery_jax.lower.configs import dump_config, read_config, side_file
from brainsurgery_jax.lower.contexts import at_key, readable
from brainsurgery_jax.lower.edits import Drafts, Unknown
from brainsurgery_jax.lower.outputs import inside
from brainsurgery_jax.lower.pairing import Sets
from brainsurgery_jax.lower.scales import codes_of, find_fault
from brainsurgery_jax.lower.side_configs import check_file, read_side_config
from brainsurgery_jax.lower.state import State, World, describe_left_out, matching, open_space, pattern_of
from brainsurgery_jax.lower.ties import find_tied_heads
from brainsurgery_jax.lower.trees import match_others, target_of
from brainsurgery_jax.op import Kernel, SinkOp
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.protocol import Bind, Flags, Item, Pairing, Row
from brainsurgery_jax.select import Index, Match, Pattern, Ref, Template, compile_template, resolve
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.base import Header, TensorInfo
from brainsurgery_jax.store.key_tree import tree_gaps, type_gap
from brainsurgery_jax.store.selection import choose_part

if TYPE_CHECKING:
    import numpy as np


@lru_cache(maxsize=4096)
def _template(target: str | tuple[str, ...], pattern: Pattern) -> Template:
    return compile_template(target, pattern)


class StepView(Drafts):
    """The view of the state that an op gets while its step is lowered. See `protocol.View`."""

    def __init__(self, state: State, step: Step, world: World):
        super().__init__(state, step, world)
        self.graph = world.graph
        self.wanted: dict[Expr, None] = {}
        self.skipped = 0  # matches that the step skipped
        self.kept: list[Bind] = []  # tensors that the step keeps as they are
        self.notes: dict[Diagnostic, None] = {}
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

    def has_key(self, key: str) -> bool:
        """Whether the step has this key in the plan."""
        return (key,) in self.step.spans

    def note(self, code: str, message: str, key: str = "", hint: str = "") -> None:
        """Add a note: not a mistake, but possibly surprising."""
        label = "" if self.step.op is None else ".".join(filter(None, (self.step.op.name, key)))
        self.notes[Diagnostic(code, f"{label}: {message}", self.step.place(key), hint, "note")] = None

    def names(self, alias: str, key: str = "") -> Sequence[str]:
        """Tensor names of an alias, in state-dict order."""
        return list(self.space(alias, key).names)

    def match(self, ref: Ref, key: str = "") -> list[str]:
        """The names that a pattern matches, sorted."""
        return [name for name, _ in self._matches(ref, key)]

    def _matches(self, ref: Ref, key: str) -> list[tuple[str, Any]]:
        """The matches of a pattern. If it may also match tensors of a failed step, a sink fails silently, and other ops
        continue with the matches that exist, if any."""
        space = self.space(ref.alias, key)
        with at_key(key):
            found = matching(ref, space.names)
        doubted = space.unknown and (not found or isinstance(self.step.op, SinkOp))
        if (doubted and pattern_of(ref.name).matches(space.unknown)) or (not found and space.tainted):
            raise Unknown
        return found

    def captures(self, ref: Ref, key: str = "", *, required: bool = True) -> tuple[Pattern, list[Match]]:
        """A pattern, and the names that it matches with what it captures of each, sorted; at least one, if that is
        required."""
        found = self._matches(ref, key)
        if not found and required:
            raise self.nothing(ref, key)
        return pattern_of(ref.name), found

    def nothing(self, ref: Ref, key: str = "") -> Refusal:
        """The refusal of a pattern that matches nothing."""
        return hints.refuse_no_match(ref, key, self.space(ref.alias, key), self.default_alias)

    def rename(
        self,
        source: Ref,
        targets: Mapping[str, Ref],
        *,
        read: Collection[str] = (),
        written: Collection[str] | None = None,
        before: Collection[str] = (),
        others: bool = False,
    ) -> list[Row]:
        """For every match of `source`: its name, and the names that the templates make of it. The matches are sorted,
        in natural order where some read what others write.

        Under the keys that are `read` a tensor must be there; what stands alone on one side is left out, kept or
        refused, as the step says. Names under those that are `written` (all others, if not said) must differ. Tensors
        under `before`, and those that a key names for all matches, are read as they were before the step. `others`:
        leaves that hold no tensor are meant, too; such a step handles all matches at once.
        """
        more = self.other_rows(source, targets) if others else []
        sets, rows = self._sets(source, targets, read, written, required=not more)
        if sets.read:
            paired = pairing.pair(self, sets, rows)
            settled = pairing.settle(self, sets, paired)
            rows, self.skipped = settled.rows, self.skipped + settled.skipped
            self.kept += settled.kept
            self.fetched = []  # kept tensors need no line
            if settled.note:
                hint = "Write `unmatched: drop` to accept this, `unmatched: error` to refuse it."
                self.note(pairing.UNMATCHED, settled.note, hint=hint)
            fate = self.step.unmatched
            if fate == "keep" or fate == "drop":
                for each in find_tied_heads(self, sets, paired):
                    self.note(pairing.UNMATCHED, each.describe(fate), hint=each.hint)
        for key in sets.written:
            hints.refuse_collisions([name for name, _ in rows], sets.names(rows, key), key)
        return [*rows, *more] if others else self._order(sets, rows, before)

    def _order(self, sets: Sets, rows: list[Row], before: Collection[str]) -> list[Row]:
        """The matches in the order in which they go. What all of them read is kept as it is."""
        if len(rows) < 2 or not sets.targets:
            return rows
        writers = matches.find_writers(sets, rows, before)
        for alias, shared in matches.find_shared(sets, rows, before, writers).items():
            names = self.space(alias).names
            self.kept_before.update(((alias, name), names[name]) for name in sorted(shared) if name in names)
        if self.kept_before:
            (alias, name), *more = self.kept_before
            what = f"'{alias}::{name}'" + (f" and {len(more)} more" if more else "")
            message = f"the step changes {what}, which its other matches read as before the step"
            self.note("operand-changed", message, hint="If it should stay as it is, narrow the pattern.")
        return matches.order_rows(sets, rows, before, writers)

    def others(self, ref: Ref) -> list[str]:
        """The leaves without a tensor that a pattern matches."""
        return [name for name, _ in self.other_matches(ref)]

    def other_rows(self, source: Ref, targets: Mapping[str, Ref]) -> list[Row]:
        """For every leaf without a tensor that `source` matches: its name, and the names from the templates."""
        rows: list[Row] = []
        for name, (matched, binding) in self.other_matches(source):
            made = [self._fill(target, source, key, matched, binding) for key, target in targets.items()]
            names = [target_of(name, matched, filled) for filled in made]
            if all(names):
                rows.append((name, tuple(n for n in names if n)))
        return rows

    def _fill(self, target: Ref, source: Ref, key: str, matched: str, binding: Any) -> str:
        with at_key(key):
            return _template(target.name, pattern_of(source.name)).fill(matched, binding)

    def other_matches(self, ref: Ref) -> list[tuple[str, Match]]:
        """The leaves without a tensor that a pattern matches, with what it captured of each."""
        space = self._side(ref.alias) if self.has_trees and ref.kind is None else None
        if space is None or not space.leaves.others:
            return []
        with at_key(self._key(ref)):
            return match_others(pattern_of(ref.name), space.leaves, space.names)

    def pair(self, source: Ref, targets: Mapping[str, Ref]) -> Pairing:
        """Every match of `source` with the tensors that the templates name for it. Refuses nothing."""
        return pairing.pair(self, *self._sets(source, targets, tuple(targets), ()))

    def _sets(
        self,
        source: Ref,
        targets: Mapping[str, Ref],
        read: Collection[str],
        written: Collection[str] | None,
        *,
        required: bool = True,
    ) -> tuple[Sets, list[Row]]:
        """The matches that a step works on, with the names from its templates; at least one if `required`."""
        pattern, found = self.captures(source, self._key(source), required=required)
        templates: dict[str, Template] = {}
        filled: list[list[str]] = []
        for key, target in targets.items():
            self.space(target.alias, key)
            with at_key(key):
                templates[key] = _template(target.name, pattern)
                filled.append(templates[key].fill_all(found))
        writes = tuple(key for key in targets if key not in read) if written is None else tuple(written)
        others = zip(*filled, strict=True) if filled else repeat(())
        rows = list(zip(map(itemgetter(0), found), others, strict=False))
        return Sets(source, pattern, targets, templates, tuple(read), writes), rows

    def _key(self, ref: Ref) -> str:
        inner = (item for v in self.step.params.values() if isinstance(v, Mapping) for item in v.items())
        return next((k.rstrip("_") for k, v in (*self.step.params.items(), *inner) if v is ref), "")

    def literal(self, ref: Ref, key: str = "") -> str:
        """The name in a reference that is no pattern."""
        self.space(ref.alias, key)
        assert isinstance(ref.name, str)
        return ref.name

    # --- values

    def aval(self, alias: str, name: str) -> Aval:
        """The shape and dtype of a tensor; this counts as no read."""
        return self._value(alias, name).aval

    def has(self, alias: str, name: str) -> bool:
        """Whether a tensor exists; if so, this counts as a read."""
        space = self.space(alias)
        if name not in space.names:
            if space.tainted or name in space.unknown:
                raise Unknown
            return False
        space.reads[name] = space.reads.get(name, 0) + 1
        return True

    def count(self, alias: str, name: str) -> tuple[int, int]:
        """The numbers of reads and writes of a tensor."""
        space = self.space(alias)
        return space.reads.get(name, 0), space.writes.get(name, 1)

    def select(self, ref: Ref, key: str = "", required: bool = True) -> list[Item]:
        """The tensors that a pattern matches, sorted by name, with the slice of the reference applied."""
        names = self.match(ref, key)
        if not names and required:
            raise self.nothing(ref, key)
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
        """The tensors that an alias was created with: those of its checkpoint or tree, or none."""
        space = self.space(alias, key)
        if space.tainted or space.unknown:
            raise Unknown
        return space.original

    def type_gap(self, left: tuple[str, str], right: tuple[str, str]) -> tuple[str, str] | None:
        """How the types of two tensors differ beyond shape and dtype, in words; None if no difference is known."""
        if not self.has_trees:
            return None
        ours, theirs = self.space(left[0]).key_tree, self.space(right[0]).key_tree
        return type_gap(ours, theirs, left[1], right[1])

    def tree_gaps(self, left: str, right: str | None = None) -> Mapping[str, tuple[str, str]]:
        """How the tree of an alias differs from that of another alias, apart from tensor values; without another, how
        it differs from the tree that the alias was created with. By name, each side in words."""
        if not self.has_trees:
            return {}
        ours, theirs = self.space(left), self.space(left if right is None else right)
        was = ours.grown if right is None else ours.key_tree
        names = ours.original if right is None else ours.names
        return tree_gaps(was, theirs.key_tree, (name for name in names if name in theirs.names))

    def config(self, alias: str, key: str = "", file: str = "") -> tuple[str, object] | None:
        """The name and current content of the config of an alias, or of another JSON `file` beside its weights; None if
        there is none."""
        if file:
            check_file(file)
        space, extras = self.space(alias, key), self.extras(alias, key)
        if extras.doubtful or (space.tainted and space.extras.origin is None):
            raise Unknown
        if file:
            found = read_side_config(extras, file, self.world)
            return None if found is None else (file, found)
        with at_key(key):
            return read_config(extras, self.world)

    def origin(self, alias: str) -> str | None:
        """The checkpoint that an alias came from."""
        return self.space(alias).extras.origin

    def side_file(self, alias: str, name: str, key: str = "") -> bytes | None:
        """The current content of a side file of an alias; None if it has none of that name."""
        extras = self.extras(alias, key)
        if name in extras.configs:
            return dump_config(extras.configs[name])
        if name in extras.made_tokenizer:
            return extras.made_tokenizer[name]
        with at_key(key):
            return side_file(extras.home_of(name), name, self.world)

    def slice(self, expr: Expr, ref: Ref, key: str = "") -> Expr:
        """A value, or the slice of it that the reference selects."""
        if ref.index is None:
            return expr
        return self._call(take, (expr,), {"index": self._index(ref, expr.aval, key)})

    def _index(self, ref: Ref, aval: Aval, key: str) -> Index:
        with at_key(key):
            index = resolve(ref.index, aval.shape)
        if ref.index is not None and aval.size and 0 in index.shape:
            message, hint = hints.of_empty(ref.index, index)
            self.note("slice-empty", message, key, hint)
        return index

    def update(self, whole: Expr, ref: Ref, value: Expr, key: str = "") -> Expr:
        """`whole` with `value` written to the slice of the reference (everywhere without one)."""
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

    def apply(self, kernel: Callable[..., object], *srcs: Expr, **params: object) -> Expr:
        """The result of a kernel with one result."""
        only, *others = self.apply_all(kernel, *srcs, **params)
        if others:
            raise TypeError(f"'{self._kernel(kernel).name}' has {1 + len(others)} results: call `apply_all`")
        return only

    def apply_all(self, kernel: Callable[..., object], *srcs: Expr, **params: object) -> tuple[Expr, ...]:
        """The results of a kernel, in order."""
        kernel = self._kernel(kernel)
        try:
            call = self._call(kernel, srcs, params)
        except Refusal as bad:
            names = [name for src in srcs if (name := self._name(src))]
            about = f" ({', '.join(names)})" if names else ""
            raise bad.about(about) from bad
        return tuple(self.graph.pick(call, i) for i in range(len(call.avals))) if len(call.avals) > 1 else (call,)

    def caution(self, kernel: Kernel, srcs: tuple[Expr, ...], params: Mapping[str, object]) -> None:
        """Note what may surprise about operands that no step has computed."""
        found = None if kernel.caution is None else kernel.caution(tuple([s.aval for s in srcs]), params)
        if found is not None and self.is_original(*srcs):
            self.note(found.code, found.message, hint=found.hint)

    def is_original(self, *exprs: Expr) -> bool:
        """Whether their elements are those of inputs: no step has computed them."""
        return all(e.kernel is None or e.kernel.moves is not None for e in walk(exprs))

    @staticmethod
    def _kernel(function: Callable[..., object]) -> Kernel:
        if not isinstance(function, Kernel):
            raise TypeError(f"{function!r} is no kernel: decorate it with `@kernel()`")
        return function

    def _call(self, kernel: Kernel, srcs: tuple[Expr, ...], params: Mapping[str, Any]) -> Expr:
        return self.graph.call(kernel, srcs, params)

    def _name(self, expr: Expr) -> str:
        """A name of a value, or of the tensor that it was sliced from; empty if there is none."""
        whole = expr.srcs[0] if expr.kernel is take else expr
        found = (f"'{a}::{n}'" for a in self.aliases() for n, e in self.space(a).names.items() if e is whole)
        return next(found, "")

    def constant(self, value: np.ndarray, dtype: DType) -> Expr:
        """A small array whose values are in the plan."""
        return self.graph.const(value, dtype)

    def number(self, expr: Expr, bound: int) -> int:
        """The value of a scalar that depends on data. If it is not known yet: its bound, and the step is lowered
        again."""
        if (value := self.state.known.get(expr)) is not None:
            return value
        self.wanted[expr] = None
        self.provisional = True
        return Bound(bound)

    def check_scales(self, alias: str, name: str, usual: Block, key: str = "") -> None:
        """Refuse codes beside the scales of others. Of other parts that were left behind, a note tells."""
        tensors = self.space(alias).names
        where = name if alias == self.state.default_alias else f"{alias}::{name}"
        fault = find_fault(name, tensors[name], tensors, usual, lambda leaf: codes_of(leaf, self.stood_beside(leaf)))
        if fault is not None and fault.mixed:
            hint = "Move, cut and order scales as their codes, or let this step come before those that do not."
            raise Refusal("scale-mismatch", f"'{where}', codes, {fault.why}", key=key, hint=hint)
        if fault is not None and fault.wanted not in tensors:
            hint = "Move it as well, before this step, or leave out the step that deletes it."
            self.note("scale-left", f"'{where}', codes, is read without what stood in '{fault.left}'", key, hint)

    def open(self, path: str, key: str = "", format: str | None = None) -> Mapping[str, Expr]:
        """The tensors of a checkpoint, or those that an earlier `save` of this plan will write there."""
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
        with readable(key):
            if told := describe_left_out(self.world.open(path, format).header):
                self.note("input-left-out", told, key)
            for note in self.world.open(path, format).header.notes:
                self.note(note.code, note.message, key, note.hint)
            return open_space(self.world, path, format).names

    def _part(self, image: Mapping[str, Expr], path: str, key: str) -> Mapping[str, Expr]:
        """The tensors of a saved image that an address selects."""
        header = Header(path, (), {name: TensorInfo(expr.aval, 0, 0) for name, expr in image.items()}, {})
        with readable(key):
            names = choose_part(header, parse_address(path)).choose(image)
        return {new: image[old] for new, old in names.items()}
