"""The keys of a payload: how each is read, and the types by which ops annotate them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StringConstraints

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.select import Ref

Word = BeforeValidator(lambda v: v.strip().lower() if isinstance(v, str) else v)
"""Put on a `Literal` of words: case and surrounding space do not matter."""

Text = Annotated[str, StringConstraints(min_length=1)]
"""Text that is not empty."""


class Role(NamedTuple):
    """How a payload key is read: as a pattern over names, a template for names, one literal name, or a nested assert.

    `slices`: a slice may follow. `beside`: without an alias, the alias of that other key is meant, else `fallback`.
    Operands are a mapping of names to references, the first a pattern, the others templates. `read`: what a template
    names is read beside the match.
    The last five hold steps of their own, as a list, a plan, its YAML text, the path of a file, or a recipe.
    `plain`: the annotation of the key in a payload without `over`, where a step is about sets of tensors only with it.
    """

    kind: Literal[
        "pattern", "template", "name", "operands", "assert", "asserts", "number", "dtype",
        "steps", "plan", "plan-text", "plan-file", "recipe",
    ]  # fmt: skip
    slices: bool = False
    beside: str = ""
    fallback: str | None = None
    plain: object = None
    read: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether it selects tensors by a pattern."""
        return self.kind == "pattern"

    @property
    def is_template(self) -> bool:
        """Whether it is a name that is created from each match."""
        return self.kind == "template"

    @property
    def is_literal(self) -> bool:
        """Whether it is one name, taken as it is."""
        return self.kind == "name"

    @property
    def is_operands(self) -> bool:
        """Whether it is references by name."""
        return self.kind == "operands"

    @property
    def is_number(self) -> bool:
        """Whether it is a number."""
        return self.kind == "number"

    @property
    def takes_tensor(self) -> bool:
        """Whether it is a number that may also be the element of a tensor, whose name is made from each match."""
        return self.is_number and self.slices

    @property
    def is_assert(self) -> bool:
        """Whether it is one assert."""
        return self.kind == "assert"

    @property
    def selects(self) -> bool:
        """Whether it means tensors that are there, so that only those of a kind may be meant."""
        return self.is_pattern or self.is_operands or self.read


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


def read_values(given: Mapping[str, tuple[int | str, ...]]) -> tuple[str, tuple[str, ...]]:
    """A name and the texts that it stands for, one after another; `'1:12'` is a range, as Python slices."""
    ((name, values),) = given.items()
    texts: list[str] = []
    for value in values:
        start, colon, stop = str(value).partition(":")
        if colon and not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop) <= MOST_VALUES):
            raise ValueError(f"'{value}' is no range such as '1:12'")
        texts += map(str, range(int(start), int(stop))) if colon else [start]
    if twice := next((text for at, text in enumerate(texts) if text in texts[:at]), None):
        raise ValueError(f"'{twice}' is there twice")
    return name, tuple(texts)


MOST_VALUES = 100_000
Values = Annotated[
    Mapping[Text, Annotated[tuple[StrictInt | Text, ...], Field(min_length=1)]],
    Field(
        min_length=1, max_length=1,
        description="a name for what `${NAME}` in `to` is one after another: {NAME: [0, '2:5', text]}",
    ),
    AfterValidator(read_values),
]  # fmt: skip
"""Each match gives several results, whose names differ in these texts. Read as the name and the texts."""
Real = Annotated[float, Role("number")]
"""A number of the plan, as builders, control ops and sinks get it."""
if TYPE_CHECKING:
    Number = Annotated[Array, Role("number")]
    NumberOrTensor = Annotated[Array, Role("number", slices=True)]
else:
    Number = Real
    NumberOrTensor = Annotated[float, Role("number", slices=True)]
"""A number of the plan, as kernels get it: a scalar in double precision, traced in compiled code. The second may be the
only element of a tensor as well, for kernels with the fact `with_tensors`."""


class Keyword(NamedTuple):
    """One keyword-only parameter of an op's function."""

    name: str
    annotation: object
    default: object
    role: Role | None


@dataclass(frozen=True)
class KeyGroup:
    """Base of frozen dataclasses whose fields are keys of the plan: an op's function takes them as one parameter."""


@cache
def read_keywords(fn: Callable) -> tuple[Keyword, ...]:
    """The keyword-only parameters of a function, their annotations evaluated, groups of keys unfolded."""
    out: list[Keyword] = []
    for p, annotation in _keyword_annotations(fn):
        if (group := _as_group(annotation)) is not None:
            out += _read_group(group)
        else:
            out.append(Keyword(p.name, annotation, p.default, role_of(annotation)))
    return tuple(out)


def gather_groups(fn: Callable, params: Mapping[str, object]) -> Mapping[str, object]:
    """The keys of a step as a function takes them: those of a group as one parameter."""
    if not (groups := _groups(fn)):
        return params
    made = dict(params)
    for name, group in groups:
        made[name] = group(**{f.name: made.pop(f.name) for f in fields(group) if f.name in made})
    return made


@cache
def _groups(fn: Callable) -> tuple[tuple[str, type[KeyGroup]], ...]:
    """The parameters of a function that are groups of keys."""
    found = ((p.name, _as_group(annotation)) for p, annotation in _keyword_annotations(fn))
    return tuple((name, group) for name, group in found if group is not None)


def _keyword_annotations(fn: Callable) -> Iterator[tuple[inspect.Parameter, object]]:
    for p in inspect.signature(fn).parameters.values():
        if p.kind is inspect.Parameter.KEYWORD_ONLY:
            # Only these: the tensors' annotations would import jaxtyping, and with it JAX.
            yield p, eval(p.annotation, fn.__globals__) if isinstance(p.annotation, str) else p.annotation


def _as_group(annotation: object) -> type[KeyGroup] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, KeyGroup) else None


def _read_group(group: type[KeyGroup]) -> Iterator[Keyword]:
    scope = vars(sys.modules[group.__module__])
    for f in fields(group):
        annotation = eval(f.type, scope) if isinstance(f.type, str) else f.type
        default = inspect.Parameter.empty if f.default is MISSING else f.default
        yield Keyword(f.name, annotation, default, role_of(annotation))


def role_of(annotation: object) -> Role | None:
    """The role that an annotation (or a member of its union) carries."""
    own = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Role)), None)
    if own is not None or (not isinstance(annotation, UnionType) and get_origin(annotation) is not Union):
        return own
    return next((r for a in get_args(annotation) if (r := role_of(a)) is not None), None)


def element_role(annotation: object) -> Role | None:
    """The role of the elements, where an annotation is a tuple of references."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return role_of(get_args(inner)[0]) if get_origin(inner) is tuple else None


def fewest(annotation: object) -> int:
    """How many elements a list of references has at least: as its annotation says, else one."""
    facts = (m for info in getattr(annotation, "__metadata__", ()) for m in getattr(info, "metadata", ()))
    return next((least for fact in facts if (least := getattr(fact, "min_length", None)) is not None), 1)
