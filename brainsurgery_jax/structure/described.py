"""The tensors of an alias, described by the table of their family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from brainsurgery_jax.config_patch import patch_mapping
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.compare import places
from brainsurgery_jax.families.evidence import Sizes, formula, is_divided, shape_table, sizes_of
from brainsurgery_jax.families.model import FamilyPlace, ModelType, NormForm
from brainsurgery_jax.families.names import Kin, expand_braces, kin_of
from brainsurgery_jax.families.roles import Roles, in_layers, layer_roles, modules_for
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.protocol import ModelAsked, Substep, View
from brainsurgery_jax.select import Ref
from brainsurgery_jax.structure.given import EMBED, HEAD, LAST_NORM, NORMS, read_family, refuse_given
from brainsurgery_jax.wording import few

HINT = "Describe it in the step, `family: {layers: ..., dims: ..., shapes: ..., roles: ...}`: see `docs/structure.md`."


class TensorPart(NamedTuple):
    """Tensors whose names differ in numbers only: the name with `*` for these, as it is in the checkpoint and in the
    table, and a formula for each axis."""

    starred: str
    name: str
    axes: tuple[str, ...]
    kin: Kin

    def axis_with(self, dims: Iterable[str]) -> int | None:
        """The first axis whose size depends on one of these dims."""
        wanted = set(dims)
        return next((at for at, text in enumerate(self.axes) if names_in(text) & wanted), None)


@dataclass(frozen=True, eq=False)
class Described:
    """A model: its alias, the place of its family, and its tensors."""

    alias: str
    place: FamilyPlace
    kin: Mapping[str, Kin]
    given: ModelType | None = None

    @property
    def kind(self) -> ModelType | None:
        """What is known of its `model_type`, or what the step says of it."""
        return self.given or MODELS.get(str(self.place.kind))

    @cached_property
    def sizes(self) -> Sizes:
        """Its dims."""
        return sizes_of(self.place.family, self.place.config)

    def size(self, dim: str) -> int:
        """The value of a dim. Raises Refusal if config.json does not tell it."""
        if (found := self.sizes.values.get(dim)) is None:
            if dim not in self.place.family.dims:
                raise refuse_given(
                    f"the family that the step describes has no dim {dim}", f"Add `dims: {{{dim}: KEY}}`."
                )
            keys = self.place.family.dims[dim]
            message = f"config.json of '{self.alias}' has no {' or '.join(keys)}"
            raise Refusal(
                "structure-model", message, key="alias", hint=f"Add `{keys[0]}` by a step `config` before this."
            )
        return found

    def with_config(self, patch: Mapping[str, object]) -> Sizes:
        """Its dims after a change of the config. One that a division with a rest gives is not known."""
        changed = patch_mapping(self.place.whole, patch)
        own = changed.get(self.place.part) if self.place.part else changed
        config = own if isinstance(own, Mapping) else {}
        values = sizes_of(self.place.family, config).values
        return Sizes({dim: n if is_divided(self.place.family, dim, config) else None for dim, n in values.items()})

    @cached_property
    def parts(self) -> tuple[TensorPart, ...]:
        """The tensors that the family describes. Raises Refusal for one whose shape is not that of config.json."""
        table = shape_table(self.place.family)
        found = []
        for starred, kin in self.kin.items():
            name = self._name_of(starred, table)
            if name is not None:
                found.append(TensorPart(starred, name, self._axes(self._shapes(table[name], name), kin), kin))
        return tuple(found)

    @cached_property
    def dims(self) -> frozenset[str]:
        """The dims of its tensors, and those that count its layers."""
        counted = self.stacks.values()
        return frozenset(counted).union(*(names_in(text) for part in self.parts for text in part.axes))

    @cached_property
    def unknown(self) -> tuple[str, ...]:
        """The names of tensors that the family does not describe, with `*` for numbers."""
        known = {part.starred for part in self.parts}
        return tuple(starred for starred in self.kin if starred not in known)

    def _shapes(self, shapes: Sequence[tuple[str, ...]], name: str) -> Sequence[tuple[str, ...]]:
        """The alternatives in the order in which they are tried: where sizes are equal, the class decides whether
        experts are [out, in] or [in, out]."""
        experts = None if self.kind is None else self.kind.experts
        turned = experts is not None and experts.transposed and f".{experts.stacked}." in name
        return [*reversed(shapes)] if turned else shapes

    def _name_of(self, starred: str, table: Mapping[str, object]) -> str | None:
        starts = ((self.place.base, ""), (self.place.prefix, "^"), ("", "^"))
        names = (mark + starred[len(start) :] for start, mark in starts if starred.startswith(start))
        return next((name for name in names if name in table), None)

    def _axes(self, shapes: Sequence[tuple[str, ...]], kin: Kin) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for aval, name in kin.first.items():
            fitting = next((shape for shape in shapes if self._fits(shape, aval)), None)
            if fitting is None:
                message = f"config.json of '{self.alias}' does not describe '{name}', which is {aval}"
                raise Refusal("structure-model", message, key="alias", hint=ask_first(self.alias))
            found = fitting
        return found

    def _fits(self, shape: tuple[str, ...], aval: Aval) -> bool:
        sizes = (None if text == "_" else self.sizes.of(formula(text)) for text in shape)
        return len(shape) == len(aval.shape) and all(s in (None, n) for s, n in zip(sizes, aval.shape, strict=True))

    @cached_property
    def stacks(self) -> Mapping[str, str]:
        """The dim that counts the layers of each stack that it has: of a decoder alone (OPT), not those of the encoder
        that others of its family have."""
        own = self.place.family.stacks
        there = {name: dim for name, dim in own.items() if any(k.startswith(self._head(dim)) for k in self.kin)}
        return there or own

    def _head(self, dim: str) -> str:
        """The start of the names of what a dim counts, up to the number."""
        return self.place.base + self.place.family.counts[dim][0].removesuffix("#")

    def layered(self, stack: str = "") -> str:
        """The start of the names of layers, up to their number. Raises Refusal."""
        stacks = self.stacks
        if not stacks:
            raise Refusal("structure-model", "the family that the step describes has no layers", key="family",
                          hint="Say where they are: `layers: 'model.blocks.*', dims: {L: KEY}`.")  # fmt: skip
        if stack not in stacks and (stack or len(stacks) > 1):
            known = ", ".join(stacks)
            raise Refusal("structure-model", f"which layers are meant? This model has those of {known}", key="stack",
                          hint=f"Add `stack: {next(iter(stacks))}`.")  # fmt: skip
        return self._head(stacks[stack] if stack else next(iter(stacks.values())))

    @cached_property
    def first(self) -> frozenset[str]:
        """The names of what the first layers have alone, with `*` for numbers."""
        names = [name for text in self.place.family.first for name in expand_braces(text)]
        return frozenset(f"{self.layered(stack)}*.{name}" for stack in self.stacks for name in names)

    def names(self, tables: Iterable[str]) -> list[str]:
        """Names of the table as they are in the checkpoint, with `*`; those with `^` where there is one."""
        found = []
        for table in tables:
            for name in expand_braces(table):
                starts = (self.place.prefix, "") if name.startswith("^") else (self.place.base,)
                full = [start + name.removeprefix("^") for start in starts]
                found.append(next((n for n in full if n in self.kin), full[0]))
        return found

    @property
    def tied(self) -> list[tuple[str, str]]:
        """The names of the output tables that it may have, each with the name of the table in its place if tied."""
        heads, tables = (self.names(pair[at] for pair in self.place.tied) for at in (0, 1))
        return [*zip(heads, tables, strict=True)]

    @cached_property
    def roles(self) -> Roles:
        """The modules of its layers by their roles, as the table names them; none if its class is not known."""
        if self.kind is None:
            return {}
        return {role: in_layers(self.place.family, module) for role, module in layer_roles(self.kind).items()}

    def modules(self, *roles: str) -> tuple[str, ...]:
        """The modules of its layers that may have one of these roles, as the table names them."""
        if self.given is None:
            return modules_for(self.place.family, *roles)
        return tuple(dict.fromkeys(self.roles[role] for role in roles if role in self.roles))

    @property
    def norms(self) -> NormForm:
        """How its norms compute. Raises Refusal if the step that describes it does not say so."""
        if self.given is None and (self.kind is None or self.kind.norms is None):
            message = f"'{self.alias}' is a {self.place.kind}: how its norms compute is not known"
            raise Refusal("structure-model", message, key="alias", hint="Leave the step out.")
        if self.kind is None or self.kind.norms is None:
            raise refuse_given("the family that the step describes does not say how norms compute",
                         f"Add `norms: layer_norm` (or {' or '.join(list(NORMS)[1:])}) to `family`.")  # fmt: skip
        return self.kind.norms

    def require(self, *roles: str) -> None:
        """Raises Refusal if the step describes the model, and leaves one of these roles out."""
        own = self.place.family
        known = {*self.roles, *([EMBED, HEAD] if own.tied else []), *([LAST_NORM] if own.last_norm else [])}
        if missing := [role for role in roles if self.given is not None and role not in known]:
            named = "embed and head" if missing[0] in (EMBED, HEAD) else missing[0]
            raise refuse_given(f"the family that the step describes has no module for the role {named}",
                         f"Add `roles: {{{missing[0]}: NAME}}`.")  # fmt: skip

    def part_of(self, starred: str, dim: str) -> tuple[TensorPart, int]:
        """What is known of a tensor, and which of its axes a dim counts. Raises Refusal if that is not known."""
        part = next((part for part in self.parts if part.starred == starred), None)
        axes = [] if part is None else [at for at, text in enumerate(part.axes) if dim in names_in(text)]
        if part is None or len(axes) != 1:
            raise refuse_given(f"it is not known which axis of '{starred}' has an entry for each {dim}",
                         f"Give its shape: `shapes: {{'{starred}': [...]}}`, with {dim} for that axis.")  # fmt: skip
        return part, axes[0]

    def ref(self, starred: str, index: str = "") -> Mapping[str, object]:
        """A reference to all tensors of such a name, and to a part of each."""
        return {"alias": self.alias, "name": pattern(starred), **({"slice": index} if index else {})}

    def compute(self, target: str, expr: str, **more: str) -> Substep:
        """The step that changes all `w` of a name, by others of the same layer, such as the gain `g` of a norm."""
        read = {key: to(self.alias, filled(name)) for key, name in more.items()}
        return Substep(
            "compute", {"from": {"w": {"alias": self.alias, "name": captured(target)}, **read}, "expr": expr}
        )

    def configure(self, patch: Mapping[str, object]) -> Iterator[Substep]:
        """The step that sets values in the config, if there are any."""
        if patch:
            yield Substep("config", {"patch": patch, "alias": self.alias})


def ask_first(alias: str) -> str:
    """The remedy for a model that is not what its config says."""
    return f"Put `- assert: {{consistent: {alias}}}` before this step: it tells the config that does."


def names_in(text: str) -> frozenset[str]:
    """The dims in the formula for an axis."""
    return frozenset() if text == "_" else formula(text).names


def pattern(starred: str) -> str:
    """A pattern for all names that differ in numbers only."""
    return re.escape(starred).replace(r"\*", r"\d+")


def captured(starred: str) -> str:
    """The same, where each number is a group."""
    return re.escape(starred).replace(r"\*", r"(\d+)")


def filled(starred: str) -> str:
    """A template for a name with the numbers that `captured` has."""
    pieces = starred.split("*")
    return pieces[0] + "".join(rf"\g<{at}>{piece}" for at, piece in enumerate(pieces[1:], 1))


def to(alias: str, name: str) -> Ref:
    """A reference without a slice."""
    return Ref(alias, name)


def choose_alias(view: View, alias: str | None) -> str:
    """The alias that is meant where a step names none. Raises Refusal."""
    known = view.aliases()
    chosen = alias or view.default_alias or (known[0] if len(known) == 1 else None)
    if chosen is None:
        names = ", ".join(f"'{a}'" for a in known)
        raise Refusal("ref-no-alias", f"which model is to change? There are {names or 'no aliases'}", key="alias",
                      hint="Add `alias: NAME`.")  # fmt: skip
    return chosen


def describe(view: View, which: ModelAsked, *, hint: str = "") -> Described:
    """The model that a step is about, by what it says of it, or by the family that its names show. Raises Refusal."""
    chosen = choose_alias(view, which.alias)
    kin = kin_of({name: view.fetch(chosen, name).aval for name in view.names(chosen)})
    found = view.config(chosen, "alias")
    whole = found[1] if found is not None and isinstance(found[1], Mapping) else None
    if which.family is not None:
        return _describe_given(chosen, kin, whole or {}, which.part, which.family)
    return _recognise(chosen, kin, whole, which.part, hint)


def _describe_given(
    alias: str, kin: Mapping[str, Kin], whole: Mapping[str, object], part: str | None, family: Mapping[str, Any]
) -> Described:
    own = whole.get(part) if part else whole
    if not isinstance(own, Mapping):
        raise refuse_given(f"config.json of '{alias}' has no part '{part}'", "Leave `part` out.")
    named = str(own.get("model_type", whole.get("model_type")))
    given = read_family(family, kin.keys(), MODELS.get(named))
    return Described(alias, FamilyPlace(given.family, part or "", own, whole, "", ""), kin, given)


def _recognise(
    chosen: str, kin: Mapping[str, Kin], config: Mapping[str, Any] | None, part: str | None, hint: str
) -> Described:
    """The model by the family that its names show."""
    if config is None:
        message = f"'{chosen}' came without a config.json, so its structure is not known"
        raise Refusal(
            "structure-model", message, key="alias",
            hint="Read the folder with config.json and not the file, or give the config by a step `config`.",
        )  # fmt: skip
    recognised = [place for place in places(config, kin) if part is None or place.part == part]
    if not recognised:
        kind = config.get("model_type")
        about = f"model_type '{kind}'" if kind else "its config.json, which has no model_type,"
        message = f"the tensors of '{chosen}' are those of no family that is known; {about} says no more"
        raise Refusal("structure-model", message, key="alias", hint=hint or HINT)
    if len(recognised) > 1:
        parts = [place.part for place in recognised]
        raise Refusal("structure-model", f"'{chosen}' has several models within: {few(parts)}", key="part",
                      hint=f"Name the one that is to change: `part: {parts[0]}`.")  # fmt: skip
    return Described(chosen, recognised[0], kin)
