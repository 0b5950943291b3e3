"""New tensors: constants, given values, and random numbers that depend on seed, name and shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypedDict

from pydantic import Field, StrictInt

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.dtypes import FLOAT32, Aval, DType, float_hint, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Word
from brainsurgery_jax.numerics.math import fold_seed, key_of_block
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import Avals, Form, Number, Real, build, kernel
from brainsurgery_jax.ops._constants import broadcast, constant
from brainsurgery_jax.protocol import TensorExpr, View

Sizes = Annotated[tuple[Annotated[StrictInt, Field(gt=0)], ...], Field(min_length=1, description="positive sizes")]
Mode = Annotated[Literal["constant", "rand", "tensor"], Word]
Distribution = Annotated[Literal["uniform", "normal"], Word]
Seed = Annotated[StrictInt, Field(description="integer; without it the plan's `seed` serves")]


@dataclass(frozen=True)
class DrawKeys(KeyGroup):
    """How random values are drawn: uniformly on [low, high), or normally."""

    distribution: Distribution = "uniform"
    low: Real = 0.0
    high: Real = 1.0
    mean: Real = 0.0
    std: Real = 1.0
    seed: Seed | None = None


class RandomTensor(NamedTuple):
    """Shape, dtype and distribution of random values."""

    shape: tuple[int, ...]
    dtype: DType
    distribution: str


class RandomParams(TypedDict):
    """What is made of random values."""

    made: RandomTensor


def _random_aval(avals: Avals, params: RandomParams) -> Avals:
    return (Aval(params["made"].shape, params["made"].dtype),)


@kernel(blocks=True, result=_random_aval)
def random_block(
    *,
    made: RandomTensor,
    first: Number,
    second: Number,
    key_high: Number,
    key_low: Number,
    block: Number,
    size: int,
) -> Array:
    """Block number `block` (of `size` elements) of a random tensor.

    Values are uniform on [first, second), or normal with mean `first` and standard deviation `second`.
    """
    key = key_of_block(key_high, key_low, block)
    wide = jnp.float64 if made.dtype.bits == 64 else jnp.float32
    uniform = made.distribution == "uniform"
    draw = jax.random.uniform if uniform else jax.random.normal
    scale = (second - first if uniform else second).astype(wide)
    return round_to(draw(key, (size,), wide) * scale + first.astype(wide), to_numpy(made.dtype))


def _random(view: View, aval: Aval, seed: int, draw: DrawKeys) -> TensorExpr:
    distribution, low, high, mean, std = draw.distribution, draw.low, draw.high, draw.mean, draw.std
    if not aval.dtype.is_float:
        raise Refusal("dtype-unsupported", f"random values need a floating dtype, got {aval}", key="mode",
                      hint=float_hint(aval.dtype), kinds=("float",))  # fmt: skip
    if distribution == "uniform" and not low < high:
        raise Refusal("rand-range", f"low {low:g} is not below high {high:g}", key="low",
                      hint="Values are drawn from low up to, but without, high.")  # fmt: skip
    if distribution == "normal" and not std > 0:
        raise Refusal("rand-range", f"std must be positive, got {std:g}", key="std",
                      hint="For a constant use `mode: constant`.")  # fmt: skip
    first, second = (low, high) if distribution == "uniform" else (mean, std)
    key_high, key_low = float(seed >> 32 & 0xFFFFFFFF), float(seed & 0xFFFFFFFF)
    return view.apply(
        random_block, made=RandomTensor(aval.shape, aval.dtype, distribution), first=first, second=second,
        key_high=key_high, key_low=key_low,
    )  # fmt: skip


_KEYS_OF = {"constant": ("value",), "tensor": ("values",), "uniform": ("low", "high"), "normal": ("mean", "std")}


def _tell_idle_keys(view: View, mode: str, distribution: str) -> None:
    """Note keys of another mode or distribution: the reference accepts and ignores them."""
    kind = distribution if mode == "rand" else mode
    used = (*_KEYS_OF[kind], *(("distribution", "seed") if mode == "rand" else ()))
    others = {key: other for other, keys in _KEYS_OF.items() for key in keys} | {"distribution": "rand", "seed": "rand"}
    for key, other in others.items():
        if key not in used and view.has_key(key):
            change = "distribution" if mode == "rand" and other in ("uniform", "normal") else "mode"
            meant = other if change == "distribution" or other not in ("uniform", "normal") else "rand"
            message = f"'{key}' has no effect on {'numbers' if mode == 'rand' else 'values'} that are {_WORDS[kind]}"
            view.note("key-idle", message, key, f"Write `{change}: {meant}` with it, or leave it out.")


_WORDS = {"constant": "constant", "tensor": "given", "uniform": "drawn uniformly", "normal": "drawn normally"}


def _fill(view: View, value: object, aval: Aval, key: str) -> TensorExpr:
    array = constant(value, aval.dtype, key)
    tail = aval.shape[len(aval.shape) - array.ndim :] if array.ndim <= len(aval.shape) else None
    if tail is None or any(n not in (1, m) for n, m in zip(array.shape, tail, strict=True)):
        raise Refusal("fill-shape", f"values of shape {list(array.shape)} cannot be repeated to {aval}", key=key,
                      hint="From the last axis on, each size must be 1 or that of the tensor.")  # fmt: skip
    return view.apply(broadcast, view.constant(array, aval.dtype), shape=aval.shape)


def _create(
    view: View, aval: Aval, mode: str, value: float | None, values: object, seed: int, rand: DrawKeys
) -> TensorExpr:
    if mode == "rand":
        return _random(view, aval, seed, rand)
    key = "value" if mode == "constant" else "values"
    given = value if mode == "constant" else values
    if given is None:
        raise Refusal("key-missing", f"mode '{mode}' needs the key '{key}'", key="mode",
                      hint=f"Add `{key}: {0 if mode == 'constant' else [0, 1]}`.")  # fmt: skip
    return _fill(view, given, aval, key)


@build(
    Form("fill", ("from",), ("to",), "new", slices=frozenset({"from"})),
    Form("fill_", ("target",), ("target",), "existing", slices=frozenset({"target"})),
)
def fill(
    view: View,
    name: str,
    x: TensorExpr,
    *,
    mode: Mode,
    value: Real | None = None,
    values: object = None,
    draw: DrawKeys,
) -> TensorExpr:
    """Fill tensors like others (or tensors, or a slice of each) with a constant, given values or random numbers.

    `mode: constant` takes `value`, `mode: tensor` takes `values`. Random values (`mode: rand`) depend on the seed, the
    tensor's name, its shape and its dtype alone.
    Example: `fill: {from: '(.*)\\.bias', to: '\\1.zeros', mode: constant, value: 0}`
    Example: `fill_: {target: '.*\\.bias', mode: constant, value: 0}`
    """
    _tell_idle_keys(view, mode, draw.distribution)
    seed = view.seed if draw.seed is None else draw.seed
    return _create(view, x.aval, mode, value, values, fold_seed(seed, name), draw)


def _from_nothing(name: str) -> Form:
    """Keys of a new tensor under a literal name."""
    return Form(name, (), ("target",), "new")


@build(_from_nothing("zeroes"))
def zeroes(view: View, name: str, *, shape: Sizes) -> TensorExpr:
    """Create a float32 tensor of zeros under a literal name.

    Example: `zeroes: {target: 'work::delta', shape: [16, 16]}`
    """
    return _fill(view, 0.0, Aval(shape, FLOAT32), "shape")


@build(_from_nothing("ones"))
def ones(view: View, name: str, *, shape: Sizes) -> TensorExpr:
    """Create a float32 tensor of ones under a literal name.

    Example: `ones: {target: 'work::gate', shape: [16]}`
    """
    return _fill(view, 1.0, Aval(shape, FLOAT32), "shape")


@build(_from_nothing("rand"))
def rand(view: View, name: str, *, shape: Sizes, draw: DrawKeys) -> TensorExpr:
    """Create a float32 tensor of random numbers under a literal name.

    Equal seeds and shapes give equal values, on every device.
    Example: `rand: {target: 'work::noise', shape: [16], distribution: normal, std: 0.02, seed: 7}`
    """
    _tell_idle_keys(view, "rand", draw.distribution)
    return _random(view, Aval(shape, FLOAT32), view.seed if draw.seed is None else draw.seed, draw)
