"""What an op is: a pure function with facts beside it, the forms in which a plan spells it, and the registry.

No op lives here. A *kernel* is a function of arrays; its positional parameters are tensors, its keyword-only ones are
the plan's keys. A *form* says how a plan reads and writes with it (`add` and `add_` are two forms of one kernel). A
*control op* turns names into edits without arrays, a *sink* looks at tensors and leaves them alone. Parsing,
validation, help, JSON Schema and lowering are all derived from these records.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, NamedTuple, TypeVar, Unpack

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.form import EXTRA, IF_MISSING, MISSING, UNMATCHED, Field, Form
from brainsurgery_jax.kernel import Avals, Builder, Kernel, KernelFacts, Outcome, P, Params, Passes, R, Rung, Static
from brainsurgery_jax.keys import (
    DTypeName,
    KeyGroup,
    Keyword,
    Name,
    Number,
    NumberOrTensor,
    Operands,
    Partner,
    Pattern,
    Real,
    Role,
    SlicedPattern,
    SlicedTemplate,
    Template,
    Values,
    element_role,
    fewest,
    gather_groups,
    read_keywords,
    role_of,
)
from brainsurgery_jax.protocol import Edit, PartVerdict, PendingReport, Results, TensorExpr, Verdict, View
from brainsurgery_jax.select import Ref

BuildFn = TypeVar("BuildFn", bound="Callable[..., TensorExpr | Results]")
ControlFn = TypeVar("ControlFn", bound="Callable[..., Iterable[Edit]]")
SinkFn = TypeVar("SinkFn", bound="Callable[..., Verdict | PendingReport]")
AnOp = TypeVar("AnOp", bound="Op")
AssertFn = TypeVar("AssertFn", bound="Callable[..., Verdict]")


# --- Records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """What a plan can name: a form of a kernel, a control op, or a sink."""

    name: str
    fields: Callable[[], tuple[Field, ...]]
    doc: str
    shorthand: str = ""
    """The key that a payload stands for which is no mapping (`load: path`)."""
    bare: str = ""
    """The key that the whole payload stands for (`assert: {exists: x}`)."""

    @property
    def destinations(self) -> tuple[Field, ...]:
        """The keys that name what it creates: templates and literal names that are not read."""
        return tuple(
            f for f in self.fields() if f.role and (f.role.is_template or f.role.is_literal) and not f.role.read
        )

    def step_fields(self) -> tuple[Field, ...]:
        """The keys of a step: the op's own, and those that every step with a pattern has."""
        own = self.fields()
        roles = [r for f in own for r in (f.role or element_role(f.annotation),) if r is not None]
        if self.bare or not any(r.is_pattern or r.is_operands for r in roles):
            return own
        return (*own, *([UNMATCHED] if any(r.read or r.is_operands for r in roles) else []), IF_MISSING)


@dataclass(frozen=True, kw_only=True)
class TensorOp(Op):
    """Arrays to arrays: lowered item by item over the matches of its pattern."""

    maker: Kernel | Builder
    form: Form

    def changes(self, key: str) -> bool:
        """Whether the tensors under a key are created, changed or removed."""
        return key in self.form.writes or (self.form.consumes and key == self.form.match_key)


class Makes(NamedTuple):
    """The alias that an op creates: the one under `key`, without it the default alias, else `fallback`. With the key
    `unless` it creates none."""

    key: str
    unless: str = ""
    fallback: str = "model"


@dataclass(frozen=True, kw_only=True)
class ControlOp(Op):
    """Names to edits; sees the state before the step."""

    fn: Callable[..., Iterable[Edit]]
    makes: Makes | None = None
    """If the step fails, that alias is known to be unknown."""
    checkpoint: str = ""
    """The key of the path of the checkpoint that it reads or writes."""
    configures: bool = False
    """Whether it changes configs: if the step fails, they are known to be unknown."""

    def alias_made(self, params: Mapping[str, object]) -> str | None:
        """The alias that a step with these keys says that it creates."""
        if self.makes is None or params.get(self.makes.unless) is not None:
            return None
        found = params.get(self.makes.key)
        return found if isinstance(found, str) else None


@dataclass(frozen=True, kw_only=True)
class SinkOp(Op):
    """Looks at tensors: an assert yields a verdict, a report yields text."""

    fn: Callable[..., Verdict | PendingReport]


class NameTaken(Exception):
    """Raised for a second op of one name."""

    def __init__(self, first: Op, second: Op):
        self.first, self.second = first, second
        super().__init__(f"two ops are called '{second.name}'")


class Registry(MutableMapping[str, AnOp]):
    """Ops by name, in the order of announcements, then of registration. A name can be announced with the module that
    registers it, which is imported when the op is looked up: `values`, `items` and `dict` import all modules."""

    def __init__(self) -> None:
        self._announced: dict[str, str] = {}
        self._registered: dict[str, AnOp] = {}

    def announce(self, module: str, names: Sequence[str]) -> None:
        """Say which names a module registers. Raises NameTaken."""
        self._announced.update(dict.fromkeys(names, module))
        if not self._registered.keys().isdisjoint(names):
            import_module(module)  # which meets the other op of that name

    def add(self, record: AnOp) -> None:
        """Register an op. Raises NameTaken. A module that is imported anew, since its import was interrupted, registers
        its ops anew."""
        announced = self._announced.get(record.name)
        if announced is not None and announced not in sys.modules:
            import_module(announced)
        known = self._registered.get(record.name)
        if known is not None and (announced is None or _origin(known) != _origin(record)):
            raise NameTaken(known, record)
        self._registered[record.name] = record

    def restore(self, before: Mapping[str, AnOp]) -> None:
        """Make it what `dict` of it was before."""
        self._registered = dict(before)

    def __getitem__(self, name: str) -> AnOp:
        if name in self._announced:
            import_module(self._announced[name])  # or wait until another thread has imported it
        return self._registered[name]

    def __setitem__(self, name: str, record: AnOp) -> None:
        self._registered[name] = record

    def __delitem__(self, name: str) -> None:
        del self._registered[name]

    def __contains__(self, name: object) -> bool:
        return name in self._registered or name in self._announced

    def __iter__(self) -> Iterator[str]:
        return iter({**self._announced, **self._registered})

    def __len__(self) -> int:
        return len({**self._announced, **self._registered})


OPS = Registry[Op]()
ASSERTS = Registry[SinkOp]()


def function_of(op: Op) -> Callable[..., object]:
    """The function that an op was made of."""
    match op:
        case TensorOp(maker=maker):
            return maker.fn
        case ControlOp(fn=fn) | SinkOp(fn=fn):
            return fn
        case _:
            raise AssertionError(op)


def _origin(op: Op) -> tuple[str, str]:
    """The module and the name of the function of an op."""
    fn = function_of(op)
    return fn.__module__, fn.__qualname__


def kernel(name: str = "", **facts: Unpack[KernelFacts]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a kernel of a function that no plan names itself."""
    return lambda fn: Kernel(name or fn.__name__, fn, **facts)


def op(*forms: Form, **facts: Unpack[KernelFacts]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a kernel of a function and register it under each of its forms. KernelFacts as in `Kernel`."""

    def register(fn: Callable[P, R]) -> Kernel[P, R]:
        made = Kernel(fn.__name__, fn, **facts)
        _add_forms(forms, made)
        return made

    return register


def build(*forms: Form) -> Callable[[BuildFn], BuildFn]:
    """Register a function `(view, name, *operands, keys...) -> expression` under each of its forms. See `Builder`."""

    def register(fn: BuildFn) -> BuildFn:
        _add_forms(forms, Builder(fn.__name__, fn))
        return fn

    return register


def _add_forms(forms: Iterable[Form], maker: Kernel | Builder) -> None:
    for form in forms:
        doc = _doc_of(form, maker.fn)
        OPS.add(TensorOp(form.name, lambda f=form: _form_fields(maker, f), doc, maker=maker, form=form))


def control(
    name: str = "",
    shorthand: str = "",
    makes: Makes | None = None,
    checkpoint: str = "",
    keys: Mapping[str, str] | None = None,
    configures: bool = False,
) -> Callable[[ControlFn], ControlFn]:
    """Register a function `(view, *, keys...) -> edits` as an op on names. `keys` renames parameters; the other facts
    are those of `ControlOp`."""

    def register(fn: ControlFn) -> ControlFn:
        own, fields = _name(name, fn), lambda: _fields(fn, keys or {})
        facts = {"makes": makes, "checkpoint": checkpoint, "configures": configures}
        OPS.add(ControlOp(own, fields, _doc(fn), shorthand, fn=fn, **facts))
        return fn

    return register


def sink(name: str = "", shorthand: str = "", bare: str = "") -> Callable[[SinkFn], SinkFn]:
    """Register a function `(view, *, keys...) -> Verdict | Report` as an op that changes nothing."""

    def register(fn: SinkFn) -> SinkFn:
        OPS.add(SinkOp(_name(name, fn), lambda: _fields(fn), _doc(fn), shorthand, bare, fn=fn))
        return fn

    return register


def assertion(name: str = "", shorthand: str = "", bare: str = "") -> Callable[[AssertFn], AssertFn]:
    """Register a function `(view, *, keys...) -> Verdict` as an operator of `assert`."""

    def register(fn: AssertFn) -> AssertFn:
        ASSERTS.add(SinkOp(_name(name, fn), lambda: _fields(fn), _doc(fn), shorthand, bare, fn=fn))
        return fn

    return register


def _name(name: str, fn: Callable) -> str:
    return name or fn.__name__.rstrip("_")


def _doc(fn: Callable) -> str:
    return inspect.cleandoc(fn.__doc__ or "")


def _doc_of(form: Form, fn: Callable) -> str:
    """The docstring of a form's function, without the examples of its other forms."""
    lines = _doc(fn).splitlines()
    own = [line for line in lines if line.startswith(f"Example: `{form.name}:")]
    return "\n".join(line for line in lines if not own or line in own or not line.startswith("Example: `"))


def _fields(fn: Callable, keys: Mapping[str, str] = MappingProxyType({})) -> tuple[Field, ...]:
    return tuple(
        Field(keys.get(k.name, k.name.rstrip("_")), k.name, k.annotation, k.default, k.role) for k in read_keywords(fn)
    )


def _form_fields(maker: Kernel | Builder, form: Form) -> tuple[Field, ...]:
    empty, spelled = inspect.Parameter.empty, dict(form.keys)
    refs = (Field(key, key, Ref, None if key in form.optional else empty, form.role(key)) for key in form.refs)
    params = (
        Field(spelled.get(w.name, w.name.rstrip("_")), w.name, w.annotation, w.default, w.role) for w in maker.keywords
    )
    several = (Field(form.spread, form.spread, Values | None, None, None),) if form.spread else ()
    return (*refs, *several, *((MISSING, EXTRA) if form.fills else ()), *params)


@dataclass(frozen=True, slots=True)
class Assertion:
    """A parsed operator of `assert`, ready to be asked: `ask(view)`. `at`: its place among several of one step."""

    op: SinkOp
    params: Params
    at: tuple[str | int, ...] = ()

    def ask(self, view: View) -> Verdict:
        try:
            verdict = self.op.fn(view, **gather_groups(self.op.fn, self.params))
        except Refusal as bad:
            bad.at = bad.at or self.at
            raise
        assert not isinstance(verdict, PendingReport)
        return PartVerdict(verdict, self.at) if self.at else verdict


AssertionKey = Annotated[Assertion, Role("assert")]
AssertionsKey = Annotated[tuple[Assertion, ...], Role("asserts")]


__all__ = [
    "ASSERTS",
    "EXTRA",
    "IF_MISSING",
    "MISSING",
    "OPS",
    "UNMATCHED",
    "AnOp",
    "Assertion",
    "AssertionKey",
    "AssertionsKey",
    "Avals",
    "Builder",
    "ControlOp",
    "DTypeName",
    "Field",
    "Form",
    "Kernel",
    "KernelFacts",
    "KeyGroup",
    "Keyword",
    "Makes",
    "Name",
    "NameTaken",
    "Number",
    "NumberOrTensor",
    "Op",
    "Operands",
    "Outcome",
    "Params",
    "Partner",
    "Passes",
    "Pattern",
    "Real",
    "Registry",
    "Role",
    "Rung",
    "SinkOp",
    "SlicedPattern",
    "SlicedTemplate",
    "Static",
    "Template",
    "TensorOp",
    "assertion",
    "build",
    "control",
    "element_role",
    "fewest",
    "function_of",
    "gather_groups",
    "kernel",
    "op",
    "role_of",
    "sink",
]
"""All that ops, and what reads their records, import from here: keys, forms and kernels as well."""
