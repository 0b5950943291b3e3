"""What an op is: a pure function with facts beside it, the forms in which a plan spells it, and the registry.

No op lives here. A *kernel* is a function of arrays; its positional parameters are tensors, its keyword-only ones are
the plan's keys. A *form* says how a plan reads and writes with it (`add` and `add_` are two forms of one kernel). A
*control op* turns names into edits without arrays, a *sink* looks at tensors and leaves them alone. Parsing,
validation, help, JSON Schema and lowering are all derived from these records.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypedDict,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
)

from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.moves import Moves
from brainsurgery_jax.parts import Cuts
from brainsurgery_jax.protocol import Dest, Edit, Expr, Placed, Reduction, Report, Verdict, View
from brainsurgery_jax.select import Ref

P = ParamSpec("P")
R = TypeVar("R")
BuildFn = TypeVar("BuildFn", bound="Callable[..., Expr]")
Passes = tuple["Callable[[Any], Reduction]", ...]
"""What computes a small value by going over tensors: each pass is made of the answer of the one before."""

ControlFn = TypeVar("ControlFn", bound="Callable[..., Iterable[Edit]]")
SinkFn = TypeVar("SinkFn", bound="Callable[..., Verdict | Report]")
AssertFn = TypeVar("AssertFn", bound="Callable[..., Verdict]")


# --- Payload keys -----------------------------------------------------------------------------------------------------


class Role(NamedTuple):
    """How a payload key is read: as a pattern over names, a template for names, one literal name, or a nested assert.

    `slices`: a slice may follow. `beside`: without an alias, the alias of that other key is meant, else `fallback`.
    Operands are a mapping of names to references, the first a pattern, the others templates. `read`: what a template
    names is read beside the match.
    The last four hold steps of their own, as a list, a plan, its YAML text, or the path of a file.
    `plain`: the annotation of the key in a payload without `over`, where a step is about sets of tensors only with it.
    """

    kind: Literal[
        "pattern", "template", "name", "operands", "assert", "asserts", "number", "dtype",
        "steps", "plan", "plan-text", "plan-file",
    ]  # fmt: skip
    slices: bool = False
    beside: str = ""
    fallback: str | None = None
    plain: Any = None
    read: bool = False


Pattern = Annotated[Ref, Role("pattern")]
SlicedPattern = Annotated[Ref, Role("pattern", slices=True)]
Template = Annotated[Ref, Role("template")]
SlicedTemplate = Annotated[Ref, Role("template", slices=True)]
Partner = Annotated[Ref, Role("template", slices=True, read=True)]
"""A template for the names of tensors that are there."""
Name = Annotated[Ref, Role("name")]
Operands = Annotated[Mapping[str, Ref], Role("operands", slices=True)]
"""References by name: the first a pattern, the others templates filled from its match."""
DTypeName = Annotated[DType, Role("dtype")]
if TYPE_CHECKING:
    # A float of the plan, as control ops get it; inside a compiled kernel a float64 scalar, with `astype`.
    Number = Annotated[Any, Role("number")]
else:
    Number = Annotated[float, Role("number")]


# --- Kernels ----------------------------------------------------------------------------------------------------------


Avals = tuple[Aval, ...]
Params = Mapping[str, Any]
"""The keys of a step by name, as a kernel takes them."""


class Facts(TypedDict, total=False):
    """The facts of a kernel as keywords: a misspelt one is a type error. See `Kernel`."""

    elementwise: bool
    moves: Callable[[Avals, Params], Moves]
    blocks: bool
    guarded: bool
    refusal: str | Callable[[Params], str]
    rungs: Callable[[Avals, Params], tuple[Rung, ...]]
    result: Callable[[Avals, Params], tuple[Aval, ...]]
    noop: Callable[[Avals, Params], bool]
    check: Callable[[Avals, Params], None]
    host: Callable[[Avals, Params], bool]
    workspace: Callable[[Avals, Params], int]
    on_device: Callable[[Avals, Params], int]
    parts: Callable[[Avals, Params], Cuts]
    fold: Callable[[Avals, Params], Passes]


@dataclass(frozen=True, eq=False)
class Kernel(Generic[P, R]):
    """A pure function of arrays, with what the engine must know to run it.

    - `elementwise`: operands share shape and dtype, the result has that shape; may be run on any cut of them.
    - `moves`: (avals, params) -> `Moves` for ops that only move elements; gives the shape rule and the byte path.
    - `blocks`: makes values from nothing, block by block; called with the block's number and length.
    - `guarded`: returns `(result, accepted)`; the engine stops with `refusal` (which may be made of the parameters)
      where accepted is false.
    - `rungs`: (avals, params) -> a ladder of ways to do it, cheapest first; the engine takes the first accepted one.
    - `result`: (avals, params) -> avals, a shape rule that needs no JAX; else abstract evaluation is asked.
    - `noop`: (avals, params) -> whether the result is the first operand itself.
    - `check`: (avals, params) raises `Refusal` for what the shape rule lets through.
    - `host`: (avals, params) -> whether it also runs on numpy arrays, as fast as compiled for the CPU: written to the
      array API standard. Then nothing is compiled for it there, and subnormal numbers are kept without further ado.
    - `workspace`: (avals, params) -> bytes that it needs besides its operands and results (elementwise, and where the
      result is made in parts: for operands of these shapes, which are those of a piece or part).
    - `on_device`: the same on an accelerator, where it differs.
    - `parts`: (avals, params) -> along which axes the result is made in parts, each of the same part of the operands.
    - `fold`: (avals, params) -> the passes over the operands that compute a small result, so that no operand is held
      whole. Each pass is a function of the answer of the pass before (None for the first) that gives a `Reduction` of
      the operands; the last answer is the result, with `guarded` a pair `(result, accepted)`.
    """

    name: str
    fn: Callable[P, R]
    elementwise: bool = False
    moves: Callable[[Avals, Params], Moves] | None = None
    blocks: bool = False
    guarded: bool = False
    refusal: str | Callable[[Params], str] = ""
    rungs: Callable[[Avals, Params], tuple[Rung, ...]] | None = None
    result: Callable[[Avals, Params], tuple[Aval, ...]] | None = None
    noop: Callable[[Avals, Params], bool] | None = None
    check: Callable[[Avals, Params], None] | None = None
    host: Callable[[Avals, Params], bool] | None = None
    workspace: Callable[[Avals, Params], int] | None = None
    on_device: Callable[[Avals, Params], int] | None = None
    parts: Callable[[Avals, Params], Cuts] | None = None
    fold: Callable[[Avals, Params], Passes] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def why_refused(self, params: Params) -> str:
        """What is wrong with values that it does not accept."""
        return self.refusal if isinstance(self.refusal, str) else self.refusal(params)

    @cached_property
    def keywords(self) -> tuple[Keyword, ...]:
        """The keyword-only parameters, their annotations evaluated (and nobody else's)."""
        return _keywords(self.fn)

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Names of the parameters that compiled code takes as values, so that a new number needs no new code."""
        return frozenset(k.name for k in self.keywords if k.role is not None and k.role.kind == "number")


@dataclass(frozen=True, eq=False)
class Builder:
    """Builds what a form makes out of calls of kernels: `fn(view, name, *operands, keys...)` gives the expression that
    is bound to `name`. Matching, slices, `if_missing` and destinations stay with the form."""

    name: str
    fn: Callable[..., Expr]

    @cached_property
    def keywords(self) -> tuple[Keyword, ...]:
        """The keyword-only parameters, as those of a kernel."""
        return _keywords(self.fn)


class Rung(NamedTuple):
    """One way to do what a kernel does: another kernel, with static parameters of its own.

    It returns `(result, accepted, facts, state)`: what it reached is the next rung's `state`.
    """

    name: str
    kernel: Kernel
    static: Mapping[str, Any]


class Keyword(NamedTuple):
    """One keyword-only parameter of an op's function."""

    name: str
    annotation: Any
    default: Any
    role: Role | None

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@cache
def _keywords(fn: Callable) -> tuple[Keyword, ...]:
    out = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind is inspect.Parameter.KEYWORD_ONLY:
            # Only these: the tensors' annotations would import jaxtyping, and with it JAX.
            annotation = eval(p.annotation, fn.__globals__) if isinstance(p.annotation, str) else p.annotation
            out.append(Keyword(p.name, annotation, p.default, role_of(annotation)))
    return tuple(out)


def role_of(annotation: Any) -> Role | None:
    """The role that an annotation (or a member of its union) carries."""
    own = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Role)), None)
    if own is not None or (not isinstance(annotation, UnionType) and get_origin(annotation) is not Union):
        return own
    return next((r for a in get_args(annotation) if (r := role_of(a)) is not None), None)


def element_role(annotation: Any) -> Role | None:
    """The role of the elements, where an annotation is a tuple of references."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return role_of(get_args(inner)[0]) if get_origin(inner) is tuple else None


def fewest(annotation: Any) -> int:
    """How many elements a list of references has at least: as its annotation says, else one."""
    facts = (m for info in getattr(annotation, "__metadata__", ()) for m in getattr(info, "metadata", ()))
    return next((least for fact in facts if (least := getattr(fact, "min_length", None)) is not None), 1)


# --- Forms and records ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """How a plan spells a kernel.

    `reads` are the payload keys of the tensors, in the kernel's order; `pattern` is the one that is matched, the others
    are templates filled from its match. `writes` are the keys that name the results. `dest`: the destination must not
    exist (new), must exist with the result's shape and dtype (existing), or is replaced whatever it was (rebind).
    `keys` renames parameters (`cast_` spells `dtype` as `to`).
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    dest: Dest
    pattern: str = ""
    slices: frozenset[str] = frozenset()
    keys: tuple[tuple[str, str], ...] = ()

    @property
    def matched(self) -> str:
        """The key whose pattern is matched."""
        return self.pattern or self.reads[0]


class Field(NamedTuple):
    """One key of an op's payload."""

    key: str
    param: str
    annotation: Any
    default: Any
    role: Role | None

    @property
    def without_over(self) -> Field:
        """How the key is read in a payload that has no `over`."""
        plain = self.role.plain if self.role else None
        return self if plain is None else self._replace(annotation=plain, role=role_of(plain))


UNMATCHED = Field("unmatched", "unmatched", Literal["error", "keep", "drop"] | None, None, None)
"""What a step over several sets of tensors does with those that stand on one side alone: refuse, keep them as they are,
or leave them out. Not said: refuse where whole checkpoints are paired."""
IF_MISSING = Field("if_missing", "if_missing", Literal["error", "skip"], "error", None)
"""What a step does where a pattern matches nothing, or a tensor that it needs is not there: fail, or leave it out."""


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
    def written(self) -> tuple[Field, ...]:
        """The keys that name what it creates: templates and literal names that are not read."""
        return tuple(f for f in self.fields() if f.role and f.role.kind in ("template", "name") and not f.role.read)

    def step_fields(self) -> tuple[Field, ...]:
        """The keys of a step: the op's own, and those that every step with a pattern has."""
        own = self.fields()
        roles = [r for f in own for r in (f.role or element_role(f.annotation),) if r is not None]
        if self.bare or not any(r.kind in ("pattern", "operands") for r in roles):
            return own
        return (*own, *([UNMATCHED] if any(r.read or r.kind == "operands" for r in roles) else []), IF_MISSING)


@dataclass(frozen=True, kw_only=True)
class TensorOp(Op):
    """Arrays to arrays: lowered item by item over the matches of its pattern."""

    maker: Kernel | Builder
    form: Form


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


@dataclass(frozen=True, kw_only=True)
class SinkOp(Op):
    """Looks at tensors: an assert yields a verdict, a report yields text."""

    fn: Callable[..., Verdict | Report]


class NameTaken(Exception):
    """Raised for a second op of one name."""

    def __init__(self, first: Op, second: Op):
        self.first, self.second = first, second
        super().__init__(f"two ops are called '{second.name}'")


OPS: dict[str, Op] = {}
ASSERTS: dict[str, SinkOp] = {}


def kernel(name: str = "", **facts: Unpack[Facts]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a kernel of a function that no plan names itself."""
    return lambda fn: Kernel(name or fn.__name__, fn, **facts)


def op(*forms: Form, **facts: Unpack[Facts]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a kernel of a function and register it under each of its forms. Facts as in `Kernel`."""

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
        _add(OPS, TensorOp(form.name, lambda f=form: _form_fields(maker, f), doc, maker=maker, form=form))


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
        _add(OPS, ControlOp(own, fields, _doc(fn), shorthand, fn=fn, **facts))
        return fn

    return register


def sink(name: str = "", shorthand: str = "", bare: str = "") -> Callable[[SinkFn], SinkFn]:
    """Register a function `(view, *, keys...) -> Verdict | Report` as an op that changes nothing."""

    def register(fn: SinkFn) -> SinkFn:
        _add(OPS, SinkOp(_name(name, fn), lambda: _fields(fn), _doc(fn), shorthand, bare, fn=fn))
        return fn

    return register


def assertion(name: str = "", shorthand: str = "", bare: str = "") -> Callable[[AssertFn], AssertFn]:
    """Register a function `(view, *, keys...) -> Verdict` as an operator of `assert`."""

    def register(fn: AssertFn) -> AssertFn:
        _add(ASSERTS, SinkOp(_name(name, fn), lambda: _fields(fn), _doc(fn), shorthand, bare, fn=fn))
        return fn

    return register


def _name(name: str, fn: Callable) -> str:
    return name or fn.__name__.rstrip("_")


def _doc(fn: Callable) -> str:
    return inspect.cleandoc(fn.__doc__ or "")


def _doc_of(form: Form, fn: Callable[..., Any]) -> str:
    """The docstring of a form's function, without the examples of its other forms."""
    lines = _doc(fn).splitlines()
    own = [line for line in lines if line.startswith(f"Example: `{form.name}:")]
    return "\n".join(line for line in lines if not own or line in own or not line.startswith("Example: `"))


def _add(registry: dict[str, Any], record: Op) -> None:
    if record.name in registry:
        raise NameTaken(registry[record.name], record)
    registry[record.name] = record


def _fields(fn: Callable, keys: Mapping[str, str] = MappingProxyType({})) -> tuple[Field, ...]:
    return tuple(
        Field(keys.get(k.name, k.name.rstrip("_")), k.name, k.annotation, k.default, k.role) for k in _keywords(fn)
    )


def _form_fields(maker: Kernel | Builder, form: Form) -> tuple[Field, ...]:
    empty, spelled = inspect.Parameter.empty, dict(form.keys)
    keys = dict.fromkeys((form.matched, *form.reads, *form.writes))
    roles = {
        key: Role("pattern", key in form.slices)
        if key == form.matched
        else Role("template", key in form.slices, read=key in form.reads)
        for key in keys
    }
    refs = (Field(key, key, Ref, empty, role) for key, role in roles.items())
    params = (
        Field(spelled.get(w.name, w.name.rstrip("_")), w.name, w.annotation, w.default, w.role) for w in maker.keywords
    )
    return (*refs, *params)


@dataclass(frozen=True, slots=True)
class Assertion:
    """A parsed operator of `assert`, ready to be asked: `ask(view)`. `at`: its place among several of one step."""

    op: SinkOp
    params: Mapping[str, Any]
    at: tuple[str | int, ...] = ()

    def ask(self, view: View) -> Verdict:
        verdict = self.op.fn(view, **self.params)
        assert not isinstance(verdict, Report)
        return Placed(verdict, self.at) if self.at else verdict


AssertionKey = Annotated[Assertion, Role("assert")]
AssertionsKey = Annotated[tuple[Assertion, ...], Role("asserts")]
