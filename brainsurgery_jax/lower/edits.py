"""The draft of the next state: the aliases and names of one step, and the edits that are applied to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count, repeat
from typing import Any, cast

from brainsurgery_jax.codes import Block, can_hold_codes, find_codes
from brainsurgery_jax.config_patch import differing_keys
from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.graph.expr import POISON, Expr, pair
from brainsurgery_jax.graph.structure import put
from brainsurgery_jax.lower import hints
from brainsurgery_jax.lower.configs import CONFIG, read_config
from brainsurgery_jax.lower.failure import refs_of
from brainsurgery_jax.lower.following import LeavesBeside, leaves_of
from brainsurgery_jax.lower.scales import Coded, coded, codes_of, name_of, part_of_codes
from brainsurgery_jax.lower.side_configs import check_template, read_side_config
from brainsurgery_jax.lower.state import Draft, Extras, Space, State, World
from brainsurgery_jax.lower.trees import type_as
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.protocol import Dest, MoveAll
from brainsurgery_jax.select import Ref
from brainsurgery_jax.store.address import MARK
from brainsurgery_jax.store.key_paths import Path
from brainsurgery_jax.store.key_tree import NO_TREE, PLAIN, KeyTree, LeafType, OtherLeaf


def each_move(moves: Iterable[MoveAll]) -> Iterator[tuple[str, str, str, str]]:
    """Moves one by one: alias and name, before and after."""
    for alias, names, to_alias, to_names in moves:
        yield from zip(repeat(alias), names, repeat(to_alias), to_names, strict=False)


def _puts_nothing(expr: Expr) -> bool:
    """Whether this is a tensor with a slice that selects nothing of it replaced."""
    return expr.is_call and expr.kernel is put and expr.aval.size > 0 and 0 in dict(expr.static)["index"].shape


class Unknown(Exception):
    """The step depends on a result of an earlier step that failed. It fails too, silently."""


class Drafts:
    """The aliases while a step changes them. The state itself is not changed."""

    def __init__(self, state: State, step: Step, world: World):
        self.state, self.step, self.world = state, step, world
        self.drafts: dict[str, Draft] = {}
        self.gone: set[str] = set()
        self.scratches: list[str] = []  # aliases that end with the step
        self.provisional = False  # something of the step depends on numbers that are not known yet
        self.fetched: list[str] = []  # names, for the lines that `verbose` prints
        self.coded: dict[Expr, Coded] = {}  # codes and scales of quantized weights that the step reads
        self.kept_before: dict[tuple[str, str], Expr] = {}  # tensors that the step changes, and reads as they were
        self._verbose = state.flags.verbose
        self.has_trees = any(not space.extras.tree.is_plain for space in state.spaces.values())

    def aliases(self) -> list[str]:
        """Aliases in the order of their creation."""
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
        if holders := [a for a in known if alias in self.space(a).names]:
            name = alias if len(known) == 1 else f"{holders[0]}::{alias}"
            return f"'{alias}' is a tensor; a slice of it stands in brackets, such as '{name}::[0:4]'."
        plain = " An alias is plain text, no pattern." if set(alias) & set("|*+?()[]\\") else ""
        return f"Known: {', '.join(known)}.{plain}"

    def fetch(self, alias: str, name: str, key: str = "", reads: int = 1) -> Expr:
        """The value of a tensor; counts as a read (or as several)."""
        expr = self.look_up(alias, name, key)
        counts = self.drafts[alias].reads
        counts[name] = counts.get(name, 0) + reads
        return expr

    def look_up(self, alias: str, name: str, key: str = "") -> Expr:
        """The value of a tensor that the step computes on: of codes of quantized weights it notes the scales, of scales
        the codes."""
        expr = self._value(alias, name, key)
        names = self.drafts[alias].names
        found = part_of_codes(alias, name, names)
        if found is None and can_hold_codes(expr.aval.dtype):
            found = coded(alias, name, expr, names) or self._find_codes_before(alias, name, expr)
        if found is not None:
            known = self.coded.get(expr, found)
            self.coded[expr] = found._replace(beside=found.beside | known.beside)
        return expr

    def _value(self, alias: str, name: str, key: str = "") -> Expr:
        """The value of a tensor."""
        space = self.drafts.get(alias) or self.space(alias, key)
        expr = self.kept_before.get((alias, name)) or space.names.get(name)
        if expr is None:
            if space.tainted or name in space.unknown:
                raise Unknown
            near = did_you_mean(name, space.names)
            message = f"'{name}' does not exist in '{alias}' ({hints.count(space)}).{near}"
            hint = hints.of_destination(self.step.op, key) or hints.where(space)
            raise Refusal("tensor-missing", message, key=key, hint=hint)
        if expr.kind is POISON:
            raise Unknown
        if expr.provisional:
            self.provisional = True
        if self._verbose:
            self.fetched.append(name)
        return expr

    def _find_codes_before(self, alias: str, name: str, expr: Expr) -> Coded | None:
        """The codes that a tensor was renamed or cut from, if their scales still lie in some alias."""
        for leaf in leaves_of(expr):
            beside = self.stood_beside(leaf)
            codes = codes_of(leaf, beside)
            if codes is not None and beside[codes.scales] in self._leaves_held:
                made = leaf.paired is not None
                scales = frozenset((beside[codes.scales],))
                return Coded(alias, codes._replace(name=name), scales, name_of(leaf), made)
        return None

    def stood_beside(self, leaf: Expr) -> Mapping[str, Expr]:
        """The tensors of the checkpoint or pytree that a leaf comes from; of codes that the plan made, their parts."""
        if leaf.paired is not None:
            return leaf.paired.parts
        if leaf.is_leaf:
            return LeavesBeside(leaf, self.world.graph)
        space = self.state.spaces.get(leaf.source)
        return {} if space is None else space.names if space.original is None else space.original

    @cached_property
    def _leaves_held(self) -> set[Expr]:
        """The leaves that lie in some alias before the step, whole or in parts."""
        values = {expr for space in self.state.spaces.values() for expr in space.names.values()}
        return {leaf for expr in values for leaf in leaves_of(expr)}

    def bind(self, alias: str, name: str, expr: Any, dest: Dest, like: tuple[str, str] | None = None) -> bool:
        """Bind a name to a tensor, if the destination rule allows it. Returns whether it replaced one. Counts as a
        write, but for a slice that selects nothing. `like`: the tensor whose place and type in the tree it takes."""
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
        if self.has_trees:
            self._grow(space, name, expr, old, like or self._namesake(alias, name))
        space.names[name] = expr
        if space.unknown:
            space.unknown -= {name}
        if old is None:
            space.reads.pop(name, None)
            space.writes.pop(name, None)
        elif not _puts_nothing(expr):
            space.writes[name] = space.writes.get(name, 1) + 1
        return old is not None

    def _grow(self, space: Draft, name: str, expr: Expr, old: Expr | None, like: tuple[str, str] | None) -> None:
        """Place a tensor in the tree of an alias, or update its type there."""
        if old is not None:
            kind = space.leaves.types.get(name)
            if kind is not None and (made := type_as(kind, expr, old)) != kind:
                space.tree.types[name] = made
            return
        source = None if like is None else self._side(like[0])
        if like is None or source is None:
            if not space.extras.tree.is_plain:
                space.tree.put(name, None, PLAIN)
            return
        path, kind = source.leaves.paths.get(like[1]), source.leaves.types.get(like[1], PLAIN)
        if kind != PLAIN:
            kind = type_as(kind, expr, source.names.get(like[1]))
        if path is not None or kind != PLAIN or not space.extras.tree.is_plain:
            space.tree.put(name, path, kind)

    def _side(self, alias: str) -> Draft | None:
        """An alias, read-only."""
        if (draft := self.drafts.get(alias)) is None and alias in self.state.spaces and alias not in self.gone:
            return Draft(self.state.spaces[alias])
        return draft

    def _namesake(self, alias: str, name: str) -> tuple[str, str] | None:
        """A tensor of this name in another alias that the step refers to."""
        for other in self._references:
            space = self.drafts.get(other) or self.state.spaces.get(other)
            if other != alias and space is not None and name in space.names:
                return other, name
        return None

    @cached_property
    def _references(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(ref.alias for _, _, ref in refs_of(self.step)))

    def plant(self, alias: str, name: str, to_alias: str, to_name: str) -> bool:
        """Copy a leaf that holds no tensor, unless something exists there or below. Returns whether it was copied."""
        side, space = self._side(alias), self.space(to_alias)
        leaf = None if side is None else side.leaves.others.get(name)
        taken = (n for n in (*space.names, *space.leaves.others) if n == to_name or n.startswith(f"{to_name}."))
        if side is None or leaf is None or next(taken, None) is not None:
            return False
        space.tree.put_other(to_name, side.leaves.paths.get(name), leaf)
        self.has_trees = True
        return True

    def _dest_key(self, alias: str, name: str) -> str:
        """The key that names a destination; empty if two keys could."""
        fields = () if self.step.op is None else self.step.op.destinations
        refs = {f.key: self.step.params[f.param] for f in fields if f.param in self.step.params}
        named = [k for k, ref in refs.items() if isinstance(ref, Ref) and ref.name == name]
        return (named or [*refs, ""])[0] if named or len(refs) == 1 else ""

    def drop(self, alias: str, name: str) -> None:
        """Remove a leaf."""
        space = self.space(alias)
        if self.has_trees:
            space.tree.drop(name)
        if name not in space.names:
            return
        space.names.pop(name)
        space.reads.pop(name, None)
        space.writes.pop(name, None)

    def move(self, moves: Sequence[MoveAll]) -> None:
        """Rename leaves, all at once; within an alias they keep their places."""
        if self.has_trees:
            self._replant(moves)
            moves = [self._without_others(move) for move in moves]
        arriving: dict[str, dict[str, Expr]] = defaultdict(dict)  # by alias: values by new name
        written: dict[str, dict[str, int]] = defaultdict(dict)  # by alias: how often what arrives was written
        leaving: dict[str, dict[str, str | None]] = defaultdict(dict)  # by alias: the new name of what stays there
        for alias, old, to_alias, new in moves:
            arriving[to_alias].update(zip(new, self._values(alias, old), strict=True))
            if times := self.space(alias).writes:
                written[to_alias].update({b: times[a] for a, b in zip(old, new, strict=True) if a in times})
            leaving[alias].update(zip(old, new if alias == to_alias else repeat(None), strict=False))
        for alias, items in arriving.items():
            if taken := (self.space(alias).names.keys() & items.keys()) - leaving.get(alias, {}).keys():
                raise self._explain_taken(moves, alias, taken)
        for alias, renamed in leaving.items():
            self.space(alias).rename(renamed)
        for alias, items in arriving.items():
            space = self.space(alias)
            space.names.update(items)
            space.reads.update(dict.fromkeys(items, 1))
            space.writes.update(written[alias])

    def _without_others(self, moves: MoveAll) -> MoveAll:
        """The moves of leaves that hold a tensor."""
        names = self.space(moves.alias).names
        pairs = [pair for pair in zip(moves.names, moves.to_names, strict=True) if pair[0] in names]
        return moves._replace(names=[old for old, _ in pairs], to_names=[new for _, new in pairs])

    def _values(self, alias: str, names: Sequence[str]) -> list[Expr]:
        """The values of several tensors. Nearly always they are there and certain, which is quick to see."""
        values = list(map(self.space(alias).names.get, names))
        plain = all([e is not None and e.kind is not POISON and not e.provisional for e in values])
        if plain and not self._verbose:
            return cast("list[Expr]", values)
        return [self._value(alias, name) for name in names]

    def _replant(self, moves: Sequence[MoveAll]) -> None:
        """Rename leaves in the trees, all at once."""
        taken: list[tuple[str, str, Path | None, LeafType, OtherLeaf | None]] = []
        for alias, name, to_alias, to_name in each_move(moves):
            leaves = self.space(alias).leaves
            kind = leaves.types.get(name, PLAIN)
            taken.append((to_alias, to_name, leaves.paths.get(name), kind, leaves.others.get(name)))
        for alias, name, _, _ in each_move(moves):
            self.space(alias).tree.drop(name)
        for alias, name, path, kind, other in taken:
            tree = self.space(alias).tree
            if other is not None:
                tree.put_other(name, path, other)
            else:
                tree.put(name, path, kind)

    def _explain_taken(self, moves: Sequence[MoveAll], alias: str, taken: Collection[str]) -> Refusal:
        """The refusal of the first move that would give a tensor the name of one that does not leave."""
        name, target = next((m[1], m[3]) for m in each_move(moves) if m[2] == alias and m[3] in taken)
        message = f"'{target}' exists already in '{alias}', so '{name}' cannot take it"
        key = self._dest_key(alias, target)
        return Refusal("dest-exists", message, key=key, hint="Delete or move it first.")

    def add_alias(
        self, alias: str, tensors: Mapping[str, Any] | None, path: str | None, like: str | None = None
    ) -> None:
        """Create an alias, empty or with tensors, or with the config and the side files of another one."""
        self._check_alias(alias)
        if alias in self.aliases():
            remove = f"prefixes: {{mode: remove, alias: {alias}}}"
            hint = f"Choose another with `alias: NAME`, or remove the old one first: `{remove}`."
            raise Refusal("alias-exists", f"alias '{alias}' exists already", key="alias", hint=hint)
        extras = Extras(path)
        if like in self.aliases():
            extras = replace(self.extras(like), metadata={}, tree=NO_TREE)
        if path is not None and self.world.key(path) not in self.state.images:
            header = self.world.open(path).header
            extras = Extras(path, header.plain_metadata, tree=header.tree)
        elif path is not None:
            extras = Extras(path, tree=self._find_saved_tree(path, tensors or {}))
        self.drafts[alias] = Draft(Space(tensors or {}, extras))
        self.has_trees |= not extras.tree.is_plain
        self.gone.discard(alias)

    def _check_alias(self, alias: str) -> None:
        """Refuse an alias that no reference could name."""
        if not alias or MARK in alias:
            key = next((key for key, value in self.step.params.items() if value == alias), "alias").rstrip("_")
            hint = f"Write the alias alone: `{key}: {alias.partition(MARK)[0] or 'NAME'}`."
            raise Refusal("value-type", f"'{alias}' is no alias", key=key, hint=hint)

    def _find_saved_tree(self, path: str, tensors: Mapping[str, Any]) -> KeyTree:
        """The tree of a checkpoint that this plan saved at a path, if all its tensors are loaded again."""
        saved = (p for p in reversed(self.state.publications) if self.world.key(p.path) == self.world.key(path))
        made = next(saved, None)
        return made.tree if made is not None and made.tensors.keys() == tensors.keys() else NO_TREE

    def drop_alias(self, alias: str, key: str = "alias") -> None:
        """Remove an alias."""
        self.space(alias, key)
        self.drafts.pop(alias)
        self.gone.add(alias)

    def rename_alias(self, alias: str, to: str) -> None:
        """Rename an alias."""
        self._check_alias(to)
        draft = self.space(alias, "from")
        if to in self.aliases():
            raise Refusal("alias-exists", f"alias '{to}' exists already", key="to",
                          hint="Choose another name, or remove that one first.")  # fmt: skip
        self.drop_alias(alias)
        self.drafts[to] = draft

    def scratch(self) -> str:
        """Create an empty alias that ends with the step. It is never saved, and its tensors do not count as created."""
        name = next(name for n in count(1) if (name := f"scratch{n}") not in self.aliases())
        self.drafts[name] = Draft(Space({}))
        self.gone.discard(name)
        self.scratches.append(name)
        return name

    def extras(self, alias: str, key: str = "") -> Extras:
        """The extras of an alias, or those of the first alias that came from a checkpoint."""
        own = self.space(alias, key).extras
        return own.borrow(self._extras_of(other) for other in self.aliases())

    def _extras_of(self, alias: str) -> Extras:
        return (self.drafts.get(alias) or self.state.spaces[alias]).extras

    def set_config(self, alias: str, config: Mapping[str, Any], file: str = "") -> list[str]:
        """Set the config of an alias (its own, or that of `file`). Returns the keys that changed; inner keys are joined
        by dots."""
        seen = self.extras(alias, "alias")
        own, before = read_config(seen, self.world) or (CONFIG, {})
        if file not in ("", own):
            check_template(seen, file, config, self.world)
            before = read_side_config(seen, file, self.world)
        file = file or own
        draft = self.space(alias, "alias")
        draft.extras = replace(draft.extras, configs={**draft.extras.configs, file: config})
        return list(differing_keys(before if isinstance(before, Mapping) else {}, config))

    def take_tokenizer(self, alias: str, source: str) -> None:
        """Give an alias the tokenizer of another one."""
        theirs = self.extras(source)
        draft = self.space(alias, "alias")
        draft.extras = replace(draft.extras.without_tokenizer, tokenizer=theirs.tokenizer or theirs.origin,
                               made_tokenizer=theirs.made_tokenizer)  # fmt: skip

    def make_tokenizer(self, alias: str, files: Mapping[str, bytes]) -> None:
        """Give an alias a tokenizer that a step made."""
        draft = self.space(alias, "alias")
        draft.extras = replace(draft.extras.without_tokenizer, made_tokenizer=files)

    def pair_codes(self, alias: str, name: str, block: Block | None) -> None:
        """Keep in mind which scales belong to codes that the step made."""
        names = self.space(alias).names
        codes = find_codes(name, names.__contains__)
        if codes is None or names[name].is_poison:
            return
        pair(names[name], codes, {part: names[part] for part in codes.parts}, block)

    def spaces(self) -> dict[str, Space]:
        """The spaces after the step. An empty alias that received a whole model also receives its extras."""
        for alias, draft in self.drafts.items():
            before = self.state.spaces.get(alias)
            fresh = draft.extras.origin is None and draft.names and not (before and before.names)
            if fresh and (source := self._find_copied_model(draft, alias)) is not None:
                configs = {**source.configs, **draft.extras.configs}
                draft.extras = replace(source, configs=configs, tree=draft.extras.tree)
        return {a: self.drafts[a].freeze() if a in self.drafts else self.state.spaces[a] for a in self.aliases()}

    def _find_copied_model(self, draft: Draft, alias: str) -> Extras | None:
        """The extras of an alias that the step refers to, if its tensors are exactly those of a draft."""
        for other in self._references:
            space = self.state.spaces.get(other)
            if other == alias or space is None or len(space.names) != len(draft.names):
                continue
            if set(space.names.values()) == set(draft.names.values()):
                return space.extras
        return None
