"""What a merge method is, and what it sees of one tensor: the models, its parameters, and ways to compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import FLOAT64, Aval, DType
from brainsurgery_jax.errors import Refusal, did_you_mean, nearest_word
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.merging.settings import MergeParameter, Settings
from brainsurgery_jax.merging.tensors import common_work, in_dtype, spread
from brainsurgery_jax.protocol import TensorExpr, View


class ModelTensor(NamedTuple):
    """A tensor of one of the models, and the alias of that."""

    alias: str
    expr: TensorExpr


@dataclass(frozen=True)
class Merging:
    """One tensor to be merged. All operands have one shape and are floats.

    `base` is None for methods without one. `compat`: every operation is rounded to the dtype of the tensors, as
    mergekit does. `everything`: this and all other tensors of the step, for values over all parameters. `layer`: of a
    layer of a tensor that holds all, the axis and the number.
    """

    view: View
    name: str
    base: ModelTensor | None
    models: tuple[ModelTensor, ...]
    settings: Settings
    dtype: DType
    compat: bool = False
    everything: Sequence[Merging] = ()
    layer: tuple[int, int] | None = None

    # --- parameters

    def number(self, parameter: str, model: ModelTensor | None = None) -> float:
        """The value of a parameter, of a model or of all. Raises Refusal."""
        return float(self.settings.value(parameter, self.name, model.alias if model else ""))

    def numbers(self, parameter: str) -> tuple[float, ...]:
        """The values of a parameter of the models, in their order."""
        return tuple(self.number(parameter, model) for model in self.models)

    def whole(self, parameter: str) -> int:
        """The value of a parameter that counts something. Raises Refusal."""
        found = self.number(parameter)
        if not found.is_integer():
            hint = f"{parameter}: {self.settings.parameters[parameter].doc}. Give a whole number."
            raise Refusal("merge-parameter", f"'{parameter}' is a whole number, got {found:g}", key="parameters",
                          hint=hint)  # fmt: skip
        return int(found)

    def flag(self, parameter: str) -> bool:
        """Whether a parameter is on."""
        return bool(self.settings.value(parameter, self.name))

    def word(self, parameter: str, known: Sequence[str]) -> str:
        """The word of a parameter, one of those that are known; the empty one is that of a parameter that is not given.
        Raises Refusal."""
        found = str(self.settings.value(parameter, self.name))
        if found not in known:
            words = [word for word in known if word]
            message = f"'{parameter}' is one of {', '.join(words)}, got '{found}'.{did_you_mean(found, words)}"
            hint = (
                f"Write `{parameter}: {nearest_word(found, words) or words[0]}`{', or leave it out' * ('' in known)}."
            )
            raise Refusal("merge-parameter", message, key="parameters", hint=hint)
        return found

    # --- values

    @property
    def expressions(self) -> tuple[TensorExpr, ...]:
        """The operands: the base, if there is one, then the models."""
        return (*([self.base.expr] if self.base else []), *(model.expr for model in self.models))

    @property
    def aval(self) -> Aval:
        """Shape and dtype in which it is computed."""
        return Aval(self.expressions[0].aval.shape, self.work)

    @property
    def work(self) -> DType:
        """The dtype in which it is computed."""
        return self.dtype if self.compat else common_work([e.aval.dtype for e in self.expressions])

    def operands(self, *more: TensorExpr) -> tuple[TensorExpr, ...]:
        """The operands, and others with them, in one dtype: their own if it is one and nothing comes with them."""
        found = (*self.expressions, *more)
        if self.compat:
            return tuple(self.in_dtype(e, self.dtype) for e in found)
        if not more and len({e.aval.dtype for e in found}) == 1:
            return found
        return tuple(self.in_dtype(e, self.work) for e in found)

    def in_dtype(self, e: TensorExpr, dtype: DType) -> TensorExpr:
        """A tensor in another float dtype."""
        return e if e.aval.dtype == dtype else self.view.apply(in_dtype, e, dtype=dtype)

    def spread(self, values: TensorExpr, at: int) -> TensorExpr:
        """Number `at` of a vector of values at every element."""
        return spread(self.view, values, at, self.aval)

    def by_element(self, kernel: Kernel[Any, Any], *more: TensorExpr, **static: Any) -> TensorExpr:
        """An elementwise pass over the operands and what is given with them, rounded once to the result's dtype."""
        exact = not self.compat
        return self.view.apply(kernel, *self.operands(*more), **static, dtype=self.dtype, exact=exact)

    def with_values(
        self,
        kernel: Kernel[..., Array],
        values: Sequence[TensorExpr] = (),
        more: Sequence[TensorExpr] = (),
        **static: Any,
    ) -> TensorExpr:
        """A pass over the operands, and more tensors like them, with small values that are the same everywhere. Short
        floats are widened within it; where one operand is in float64, all are before."""
        operands = self.operands() if self.compat or self.work == FLOAT64 else self.expressions
        static |= {"values": len(values), "dtype": self.dtype, "exact": not self.compat}
        return self.view.apply(kernel, *operands, *more, *values, **static)

    def fold(self, kernel: Kernel[Any, Any], *more: TensorExpr, **static: Any) -> TensorExpr:
        """A small value of the operands."""
        return self.view.apply(kernel, *self.operands(*more), **static, exact=not self.compat)


Base = Literal["needed", "possible", "none"]


class MergeMethod(NamedTuple):
    """A published way to merge: what computes one tensor, its parameters, how many models it takes.

    `base`: whether it takes a base beside them. `first`: a base, if given, counts as the first of the models.
    `by_element`: whether an element of the result depends on no others, so that a stack of layers is as good as layers.
    """

    name: str
    merge: Callable[[Merging], TensorExpr]
    doc: str
    reference: str
    parameters: Mapping[str, MergeParameter]
    fewest: int = 1
    most: int = 1_000
    base: Base = "none"
    first: bool = False
    by_element: bool = False
