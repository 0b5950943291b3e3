"""States of training programs, small: what orbax saves of them, and what it saves once something in them is renamed,
pruned or merged. `STATES` and `JOBS` are the rows and columns of the table in docs/trees.md.

A state is a function of how its modules are called, so that the renamed state is made by the library itself. Values
are a function of the path of a leaf with names as they were, so that both hold the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

BODY, HEAD = "encoder", "head"
RENAMED = {"backbone": BODY}
"""New names of modules, and those that they had."""


class Job(NamedTuple):
    """What a plan does: its steps, how the modules are called afterwards, and what Python makes of the state.

    `donor`: the checkpoint `b` that it takes from; `without`: what the checkpoint `a` lacks.
    """

    steps: Sequence[Any] = ()
    body: str = BODY
    heads: Sequence[str] = (HEAD,)
    change: Callable[[Any], Any] = lambda state: state
    through: str = ""
    donor: bool = False
    without: str = ""


def keep_params(state: Any) -> Any:
    """The parameters alone of a train state."""
    return {"params": params_of(state)}


def params_of(state: Any) -> Any:
    """The parameters of a train state."""
    return state["params"] if isinstance(state, dict) else state.params


def add_params(state: Any) -> Any:
    """The state with its parameters added to themselves."""
    doubled = jax.tree.map(lambda x: x + x, params_of(state))
    return {**state, "params": doubled} if isinstance(state, dict) else state.replace(params=doubled)


def add_weights(state: Any) -> Any:
    """The state of a module with its weights added to themselves."""
    return jax.tree_util.tree_map_with_path(lambda p, x: x + x if BODY in jax.tree_util.keystr(p) else x, state)


MOVE = {"move": {"from": rf"(.*\.)?{BODY}\.(.*)", "to": r"\1backbone.\2"}}
PRUNE = {"delete": {"target": rf"(.*\.)?{HEAD}\..*"}}
SUM = {"add_": {"from": r"b::(params\..*)", "to": r"a::\1"}}
WEIGHTS = {"add_": {"from": rf"b::(.*\b{BODY}\b.*)", "to": r"a::\1"}}

JOBS = {
    "as it is": Job(),
    "renamed": Job([MOVE], body="backbone"),
    "pruned": Job([PRUNE], heads=()),
    "one module copied": Job([{"copy": {"from": rf"(.*\.)?{HEAD}\.(.*)", "to": r"\1tail.\2"}}], heads=(HEAD, "tail")),
    "parameters alone": Job([{"delete": {"target": r"(?!params\.).*"}}], change=keep_params),
    "state of another": Job([{"copy": {"from": r"b::(opt_state\..*)", "to": r"a::\1"}}], donor=True,
                            without=r"opt_state\..*"),
    "merged": Job([SUM], change=add_params, donor=True),
    "modules merged": Job([WEIGHTS], change=add_weights, donor=True),
    "by way of npz": Job(through="m.npz"),
    "by way of safetensors": Job(through="m.safetensors"),
}  # fmt: skip

OF_TRAINING = [job for job in JOBS if job != "modules merged"]
OF_MODULES = ["as it is", "renamed", "pruned", "modules merged", "by way of npz", "by way of safetensors"]


def params(body: str, heads: Sequence[str]) -> Any:
    """Parameters with a list, as JAX code has them."""
    tower = [{"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, {"w": jnp.ones((3, 2))}]
    return {body: {"layers": tower}, **{head: {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)} for head in heads}}


def label(tree: Any) -> Any:
    """Which transformation takes which module, for `multi_transform`."""
    return {key: "b" if key in (HEAD, "tail") else "a" for key in tree}


def masked(tree: Any) -> Any:
    """A mask over single leaves."""
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def masked_modules(tree: Any) -> Any:
    """A mask over whole modules: optax puts one MaskedNode in the place of each."""
    return {key: key not in (HEAD, "tail") for key in tree}


TRANSFORMATIONS: dict[str, Callable[[], Any]] = {
    "optax.chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "optax.inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(1e-2, 0.0, 9)),
    "optax.multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-1, momentum=0.9)}, label
    ),
    "optax.masked": lambda: optax.masked(optax.adam(1e-2), masked),
    "optax.masked, modules": lambda: optax.masked(optax.adam(1e-2), masked_modules),
    "optax.ema": lambda: optax.chain(optax.adam(1e-2), optax.ema(0.99)),
    "optax.MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 4),
    "optax schedules": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 100)),
}


def _optax(name: str) -> Callable[[str, Sequence[str]], Any]:
    def make(body: str, heads: Sequence[str]) -> Any:
        tree = params(body, heads)
        return {"params": tree, "opt_state": TRANSFORMATIONS[name]().init(tree), "step": 5}

    return make


class Dense(nn.Module):
    """A Linen model whose submodules are called as it is told."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in self.names:
            x = nn.Dense(2, name=name)(x)
        return x


def train_state(body: str, heads: Sequence[str]) -> Any:
    """A train state of Flax. Its step is a Python number."""
    tree = Dense((body, *heads)).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 100)))
    return TrainState.create(apply_fn=None, params=tree, tx=tx)


class Net(nnx.Module):
    """A module with a random stream, whose submodules are called as it is told."""

    def __init__(self, names: Sequence[str], impl: str):
        for name in names:
            setattr(self, name, nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(jax.random.key(7, impl=impl)))


class Lists(nnx.Module):
    """A module whose submodules are lists and dicts of modules."""

    def __init__(self, names: Sequence[str]):
        for name in names:
            blocks = [nnx.Linear(2, 2, rngs=nnx.Rngs(n)) for n in range(11)]
            setattr(self, name, nnx.List([*blocks, nnx.Dict(norm=nnx.LayerNorm(2, rngs=nnx.Rngs(0)))]))


def lists(body: str, heads: Sequence[str]) -> Any:
    """The state of a module with lists. Their places are integer keys of dicts to it."""
    return nnx.state(Lists((body, *heads)))


def _nnx(impl: str) -> Callable[[str, Sequence[str]], Any]:
    return lambda body, heads: nnx.state(Net((body, *heads), impl))


class Old(eqx.Module):
    """A module of Equinox, with functions among its leaves."""

    encoder: eqx.nn.Sequential
    head: eqx.nn.Linear


class New(eqx.Module):
    """The same with its body renamed."""

    backbone: eqx.nn.Sequential
    head: eqx.nn.Linear


class Bare(eqx.Module):
    """The same without its head."""

    encoder: eqx.nn.Sequential


def equinox(body: str, heads: Sequence[str]) -> Any:
    """The arrays of a module of Equinox."""
    layers = [eqx.nn.Linear(2, 2, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)]
    parts = {body: eqx.nn.Sequential(layers), **{h: eqx.nn.Linear(2, 2, key=jax.random.key(1)) for h in heads}}
    kind = New if body != BODY else Old if heads else Bare
    return eqx.filter(kind(**parts), eqx.is_array)


class State(NamedTuple):
    """A row: how the state is made, and the columns."""

    make: Callable[[str, Sequence[str]], Any]
    jobs: Sequence[str]


STATES = {
    **{name: State(_optax(name), OF_TRAINING) for name in TRANSFORMATIONS},
    "flax TrainState": State(train_state, OF_TRAINING),
    "flax NNX, default keys": State(_nnx("threefry2x32"), OF_MODULES),
    "flax NNX, rbg keys": State(_nnx("rbg"), OF_MODULES),
    "flax NNX, lists": State(lists, OF_MODULES),
    "Equinox module": State(equinox, OF_MODULES),
}


def fill(state: Any) -> Any:
    """The state with values that tell its leaves apart; those of renamed modules are as before."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _value(_old_name(jax.tree_util.keystr(path)), leaf), state
    )


def _old_name(path: str) -> str:
    for new, old in (*RENAMED.items(), ("tail", HEAD)):
        path = path.replace(new, old)
    return path


def _value(path: str, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    start = zlib.crc32(path.encode()) % 97
    made = (start + np.arange(leaf.size).reshape(leaf.shape)).astype(leaf.dtype)
    return jnp.asarray(made) if isinstance(leaf, jax.Array) else made
