"""Kernels: pure functions of arrays with facts beside them, and functions that build expressions out of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypedDict, TypeVar

from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.moves import Moves
from brainsurgery_jax.index.parts import Cuts
from brainsurgery_jax.keys import Keyword, read_keywords
from brainsurgery_jax.protocol import Reduction, Results, TensorExpr

P = ParamSpec("P")
R = TypeVar("R")
Passes = tuple["Callable[..., Reduction]", ...]
"""What computes a small value by going over tensors: each pass is made of the answer of the one before."""

Avals = tuple[Aval, ...]
Params = Mapping[str, object]
"""The keys of a step by name, as a kernel takes them."""

Static = tuple[tuple[str, Any], ...]
"""Parameters that are compiled in, by name."""

if TYPE_CHECKING:
    Fact = Callable[[Avals, Any], R]
    BackendFact = Callable[[Avals, Any, str], R]
"""What a kernel says of a call: a function of shapes and dtypes, and of keys, a TypedDict of those that it reads; the
last kind depends on the backend, too."""


class KernelFacts(TypedDict, total=False):
    """The facts of a kernel as keywords: a misspelt one is a type error. See `Kernel`."""

    elementwise: bool
    moves: Fact[Moves]
    blocks: bool
    guarded: bool
    refusal: str | Callable[..., str]
    rungs: BackendFact[tuple[Rung, ...]]
    resumes: bool
    result: Fact[tuple[Aval, ...]]
    noop: Fact[bool]
    check: Fact[None]
    caution: Fact[Refusal | None]
    host: Fact[bool]
    workspace: Fact[int]
    device: Fact[bool]
    on_device: Fact[int]
    within: Kernel[..., Any]
    parts: Fact[Cuts]
    needs_whole: Fact[int]
    before_rounding: Fact[DType | None]
    alike: Fact[bool]
    fold: Fact[Passes]
    with_tensors: Callable[..., TensorExpr]


@dataclass(frozen=True, eq=False)
class Kernel(Generic[P, R]):
    """A pure function of arrays, with what the engine must know to run it.

    - `elementwise`: operands share shape and dtype, the result has that shape; may be run on any cut of them.
    - `moves`: (avals, params) -> `Moves` for ops that only move elements; gives the shape rule and the byte path.
    - `blocks`: makes values from nothing, block by block; called with the block's number and length.
    - `guarded`: returns `(result, accepted)`; the engine stops with `refusal` (which may be made of the parameters)
      where accepted is false.
    - `rungs`: (avals, params, backend) -> a ladder: rungs, the cheapest on that backend first; the engine takes the
      first that accepts its own result. The backend is what JAX calls it; `cpu` stands for numpy, too.
    - `resumes`: whether it is a kernel of rungs: it takes the keyword `state`, what the rung before reached (None for
      the first), and returns an `Outcome`.
    - `result`: (avals, params) -> avals, a shape rule that needs no JAX; else abstract evaluation is asked.
    - `noop`: (avals, params) -> whether the result is the first operand itself.
    - `check`: (avals, params) raises `Refusal` for what the shape rule lets through.
    - `caution`: (avals, params) -> what to note of operands that no step has computed; it stops nothing.
    - `host`: (avals, params) -> whether it also runs on numpy arrays, as fast as compiled for the CPU: written to the
      array API standard. Then nothing is compiled for it there, and subnormal numbers are kept without further ado.
    - `workspace`: (avals, params) -> bytes that it needs besides its operands and results (elementwise, and where the
      result is made in parts: for operands of these shapes, which are those of a piece or part).
    - `device`: (avals, params) -> whether accelerators compute it. There it must do without float64 and without a
      decomposition of a large matrix; its numbers are float32. What it does not accept there the host computes.
    - `on_device`: (avals, params) -> bytes as `workspace`, on an accelerator, where it differs.
    - `within`: of a kernel with rungs, the kernel that tries those of accelerators in one function, for a trace, which
      cannot look at a result. Its numbers are float32; with `guarded` it accepts what one of them does.
    - `parts`: (avals, params) -> along which axes the result is made in parts, each of the same part of the operands.
    - `needs_whole`: (avals, params) -> how many of the last operands each part needs whole. On numpy the kernel takes
      any elements of the others, the same of each, flat, and gives as many.
    - `before_rounding`: (avals, params) -> a wider dtype which, as its key `dtype`, gives the result before its last
      step, that rounds it as `astype` does; None if there is no such step.
    - `alike`: (avals, params) -> whether compiled code gives the bits that numpy gives, and is faster, where all
      operands are of ordinary size (`numerics.ordinary`). Then parts of large results are compiled, padded with zeros:
      each element of the result depends on the same element of the tensors alone. All are bfloat16 or float32, the
      result is no NaN, and `before_rounding` gives it in float32.
    - `fold`: (avals, params) -> the passes over the operands that compute a small result, so that no operand is held
      whole. Each pass is a function of the answer of the pass before (None for the first) that gives a `Reduction` of
      the operands; the last answer is the result, with `guarded` a pair `(result, accepted)`.
    - `with_tensors`: (view, *operands, keys...) -> the expression of a call of which some numbers are tensors.
    """

    name: str
    fn: Callable[P, R]
    elementwise: bool = False
    moves: Fact[Moves] | None = None
    blocks: bool = False
    guarded: bool = False
    refusal: str | Callable[..., str] = ""
    rungs: BackendFact[tuple[Rung, ...]] | None = None
    resumes: bool = False
    result: Fact[tuple[Aval, ...]] | None = None
    noop: Fact[bool] | None = None
    check: Fact[None] | None = None
    caution: Fact[Refusal | None] | None = None
    host: Fact[bool] | None = None
    workspace: Fact[int] | None = None
    device: Fact[bool] | None = None
    on_device: Fact[int] | None = None
    within: Kernel[..., Any] | None = None
    parts: Fact[Cuts] | None = None
    needs_whole: Fact[int] | None = None
    before_rounding: Fact[DType | None] | None = None
    alike: Fact[bool] | None = None
    fold: Fact[Passes] | None = None
    with_tensors: Callable[..., TensorExpr] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def why_refused(self, params: Params) -> str:
        """What is wrong with values that it does not accept."""
        return self.refusal if isinstance(self.refusal, str) else self.refusal(params)

    @cached_property
    def keywords(self) -> tuple[Keyword, ...]:
        """The keyword-only parameters, their annotations evaluated (and nobody else's)."""
        return read_keywords(self.fn)

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Names of the parameters that compiled code takes as values, so that a new number needs no new code."""
        return frozenset(k.name for k in self.keywords if k.role is not None and k.role.is_number)


@dataclass(frozen=True, eq=False)
class Builder:
    """Builds what a form makes out of calls of kernels: `fn(view, name, *operands, keys...)` gives the expression that
    is bound to `name`, or `Results` (then `name` is that of the match). Matching, slices, `if_missing` and destinations
    stay with the form."""

    name: str
    fn: Callable[..., TensorExpr | Results]

    @cached_property
    def keywords(self) -> tuple[Keyword, ...]:
        """The keyword-only parameters, as those of a kernel."""
        return read_keywords(self.fn)


class Rung(NamedTuple):
    """A way to compute a call: a kernel and its static parameters. `name`: what reports call it; empty for the kernel
    of a call that has no ladder."""

    name: str
    kernel: Kernel
    static: Static


class Outcome(NamedTuple):
    """What a rung returns: a result (one array, or a tuple of arrays), whether the rung accepts it, what is known about
    it, and the state that the next rung starts from. Of a batch, each with a leading axis."""

    value: Any
    accepted: Any
    facts: Mapping[str, Any]
    state: Any
