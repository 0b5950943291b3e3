"""Running kernels: by numpy where that is as fast, else compiled, one function per op and static parameters.

Numbers are passed as values and never compiled in. Elementwise kernels run on flat blocks; compiled ones padded to a
power of two, so that a checkpoint of any shapes needs a handful of compilations, and those that numpy could run to the
lengths of `plan.compiling`. One kernel is one step: XLA contracts `a * b + c` inside one function, which would change
bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, wraps
from importlib import import_module
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from brainsurgery_jax._lazy import Array, jax, np
from brainsurgery_jax.dtypes import BFLOAT16, to_numpy
from brainsurgery_jax.engine.compute.devices import compiling
from brainsurgery_jax.engine.compute.reading import LateLeaf
from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.footprint import item_bytes
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.index import parts
from brainsurgery_jax.numerics.lookup import look_up, patterns
from brainsurgery_jax.numerics.ordinary import are_ordinary, is_marked, marked

if TYPE_CHECKING:
    from brainsurgery_jax.op import Kernel, Static

P = ParamSpec("P")
R = TypeVar("R")


def pure(kernel: Kernel, static: Static) -> Callable[..., Any]:
    """The function of a kernel with its static parameters filled in: `f(arrays, numbers)`."""

    def function(arrays: Sequence[Array], numbers: Mapping[str, object]) -> Any:
        return kernel.fn(*arrays, **dict(static), **numbers)

    function.__name__ = kernel.name
    return function


@lru_cache(maxsize=4096)
def compiled(kernel: Kernel, static: Static) -> Callable[..., Any]:
    """Compile the function of a kernel: `f(arrays, numbers)`."""
    return jax.jit(precise(pure(kernel, static)))


def precise(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose matrix products are computed without the shortcuts that accelerators take by default."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return call


def call_elementwise(e: Expr, operands: Sequence[np.ndarray]) -> Array:
    """One compiled elementwise kernel on flat operands of at most one block."""
    n = operands[0].size
    assert e.kernel is not None and n <= blocks.BLOCK
    length = blocks.pad_length(n)
    result = accept(e, compiled(e.kernel, e.static)([_pad(x, length) for x in operands], numbers_of(e)))
    return result if length == n else np.asarray(result)[:n]


def call_in_pieces(e: Expr, operands: Sequence[Array | LateLeaf], values: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Run a kernel on numpy arrays, taken flat, in pieces that fit in the cache together with their intermediate
    results; the result is flat. `values` are operands that each piece needs whole."""
    operands = [x if isinstance(x, LateLeaf) else np.asarray(x).reshape(-1) for x in operands]
    assert e.kernel is not None
    n, function, numbers = operands[0].size, pure(e.kernel, _before_rounding(e)), numbers_of(e)
    out = np.empty(n, to_numpy(e.aval.dtype))
    with np.errstate(all="ignore"):  # NaN and infinity are values like others
        table = None if values else _table_for(e, n, len(operands))
        for at in range(0, n, parts.PIECE):
            piece = slice(at, at + parts.PIECE)
            if table is None:
                made = accept(e, function([*(x[piece] for x in operands), *values], numbers))
                np.copyto(out[piece], made, casting="unsafe")  # which rounds: half the time of an array between
            else:
                look_up(table, operands[0][piece].view(f"u{item_bytes(e.srcs[0])}"), out[piece])
    return out


PATIENCE = 2.0
"""Seconds to wait for JAX, from the start of its import. It takes 0.3 s, and more if numpy computes meanwhile; from a
slow disk it takes longer, and then numpy begins."""


class _Import(NamedTuple):
    done: Event
    awaited_until: float


@cache
def begin_import_of_jax() -> _Import:
    """The import of JAX, on a thread of its own, unless it was imported before.

    numpy is imported before: JAX takes modules from within it, and gets unfinished ones if another thread imports it.
    """
    done = Event()
    for name in ("numpy", "ml_dtypes"):
        import_module(name)

    def load() -> None:
        try:
            import_module("jax")
        finally:
            done.set()

    if "jax" in sys.modules:
        load()
    else:
        Thread(target=load, name="import").start()
    return _Import(done, monotonic() + PATIENCE)


def may_compile() -> bool:
    """Whether JAX is imported, or soon is. If not, numpy computes the same bits as compiled code would."""
    done, until = begin_import_of_jax()
    return done.wait(max(0.0, until - monotonic()))


def call_ordinary(
    e: Expr, tensors: Sequence[np.ndarray], values: Sequence[np.ndarray], length: int
) -> np.ndarray | None:
    """Run a kernel on flat tensors of the host, compiled for a `length` to which they are padded; None if a number is
    not of ordinary size, of which compiled code may make other bits than numpy. `values` are small operands."""
    assert e.kernel is not None
    if not all(map(are_ordinary, values)):
        return None
    with exact():
        function = compiled_and_marked(e.kernel, _before_rounding(e), len(tensors), to_numpy(e.aval.dtype))
        made = function([*(_pad(x, length) for x in tensors), *values], numbers_of(e))
        found = np.asarray(made)[: tensors[0].size]
    return None if is_marked(found) else found


@lru_cache(maxsize=4096)
def compiled_and_marked(kernel: Kernel, static: Static, tensors: int, dtype: np.dtype) -> Callable[..., Any]:
    """The function of a kernel on ordinary numbers, its result rounded to a dtype, and marked where one of so many
    operands is not ordinary. `static` are the parameters of the result before it is rounded."""
    function = precise(pure(kernel, static))

    def call(operands: Sequence[jax.Array], numbers: Mapping[str, object]) -> jax.Array:
        return marked(function(operands, numbers), operands[:tensors], dtype)

    return jax.jit(call)


def _before_rounding(e: Expr) -> Static:
    """The static parameters of a call, its result being rounded when it is put where it belongs."""
    assert e.kernel is not None
    found = e.kernel.before_rounding
    wide = None if found is None else found(tuple(s.aval for s in e.srcs), dict(e.static))
    return e.static if wide is None else tuple({**dict(e.static), "dtype": wide}.items())


def _table_for(e: Expr, size: int, operands: int) -> np.ndarray | None:
    """A lookup table of a call for all values of a short float; None if a table does not pay."""
    source, short = e.srcs[0].aval.dtype, item_bytes(e.srcs[0])
    if operands > 1 or not source.is_float or short > 2 or size < 1 << 8 * short:
        return None
    if source == BFLOAT16 and e.aval.dtype.bits > 16:
        return None  # numpy widens it faster than it looks up
    if e.aval.dtype.bits > 64:
        return None
    assert e.kernel is not None
    bits = tuple((name, value.tobytes()) for name, value in numbers_of(e).items())  # 0.0 and -0.0 are equal
    return _table(e.kernel, e.static, bits, to_numpy(source))


@lru_cache(maxsize=32)
def _table(
    kernel: Kernel, static: Static, numbers: tuple[tuple[str, bytes], ...], dtype: np.dtype
) -> np.ndarray | None:
    """The results of a kernel for all values of a dtype, in the order of their bits; None if it refuses one."""
    result = pure(kernel, static)([patterns(dtype)], {name: np.frombuffer(b)[0] for name, b in numbers})
    value, accepted = result if kernel.guarded else (result, True)
    return value if bool(accepted) else None


def _pad(x: np.ndarray, length: int) -> np.ndarray:
    if x.shape[0] == length:
        return x
    out = np.zeros(length, x.dtype)
    out[: x.shape[0]] = x
    return out


def call_block(e: Expr, block: int) -> Array:
    """Block number `block` of a kernel without operands. The length of a block follows from the size alone."""
    assert e.kernel is not None
    size = blocks.pad_length(e.aval.size)
    static = (*e.static, ("size", size))
    return accept(e, compiled(e.kernel, static)([], {**numbers_of(e), "block": np.float64(block)}))


def numbers_of(e: Expr) -> dict[str, np.float64]:
    """The numeric parameters of a call, as float64 scalars."""
    return {name: np.float64(value) for name, value in e.numbers}


def single_numbers_of(e: Expr) -> dict[str, np.float32]:
    """The numeric parameters of a call on an accelerator, as float32 scalars."""
    return {name: np.float32(value) for name, value in e.numbers}


def accept(e: Expr, result: Any) -> Any:
    """The result of a kernel; where it is guarded, only if it was accepted."""
    assert e.kernel is not None
    if not e.kernel.guarded:
        return result
    value, accepted = result
    if not bool(accepted):
        raise PlanError([refusal_of(e)])
    return value


def refusal_of(e: Expr) -> Diagnostic:
    """The diagnostic of a guarded kernel that refuses its input. It names the input tensors behind the operands, and
    with the remedy an earlier step that needs the same remedy."""
    assert e.kernel is not None
    why = e.kernel.why_refused(dict(e.static))
    leaves = ", ".join(dict.fromkeys(f"'{s.name}'" for s in walk(e.srcs) if s.name))
    computed = next((s for s in e.srcs if s.is_call), None)
    problem, _, hint = why.partition(". ")
    about = f" ({'input' if computed is None else 'computed from'} {leaves})" if leaves else ""
    return Diagnostic("refused-by-values", f"{e.kernel.name}: {problem}{about}", e.span, _as_hint(hint, computed))


def _as_hint(remedy: str, computed: Expr | None) -> str:
    """A remedy as a sentence. If an earlier step computed the operand, a remedy in this step alone would keep the error
    of that step: integers that were added would never be divided."""
    if not remedy or computed is None:
        return remedy and f"{remedy}."
    place = f" ({computed.span.row})" if computed.span and computed.span.line else ""
    return f"{remedy}. Do the same in the earlier step{place} that changed the tensor."


@contextmanager
def exact() -> Iterator[None]:
    """The context of a run: 64-bit types stay 64-bit, and devices compute only what is sent to them."""
    with jax.enable_x64(True), compiling():
        yield
