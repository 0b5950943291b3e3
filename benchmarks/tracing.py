"""How long do tracing and compiling a plan under `jax.jit` take, beside the same code written by hand?

`python benchmarks/tracing.py [LEAVES]` prints one JSON line for each plan: the best of some rounds, in which both take
turns with empty caches, and the ratios. No checkpoint is needed, and the arrays are tiny.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

import brainsurgery_jax as bs

ROUNDS = 3
STAGES = ("trace", "lower", "compile")

SCALE = {"transforms": [{"scale_": {"target": ".*", "by": 0.5}}]}
RENAME = {"transforms": [{"move": {"from": r"layers\.(.*)", "to": r"blocks.\1"}}]}
TRANSPOSE = {"transforms": [{"transpose_": {"target": r".*\.a"}}, {"add_": {"from": r"(.*)\.a", "to": r"\1.b"}}]}


def scaled(tree: Any) -> Any:
    return jax.tree.map(lambda x: x * 0.5, tree)


def renamed(tree: Any) -> Any:
    return {"blocks": tree["layers"]}


def transposed(tree: Any) -> Any:
    layers = {name: {**layer, "a": layer["a"].T} for name, layer in tree["layers"].items()}
    return {"layers": {name: {**layer, "b": layer["b"] + layer["a"]} for name, layer in layers.items()}}


def stages(function: Callable[[Any], Any], tree: Any) -> tuple[float, float, float]:
    """Seconds of tracing, lowering and compiling, with nothing cached."""
    jax.clear_caches()
    begun = perf_counter()
    traced = jax.jit(lambda x: function(x)).trace(tree)
    after = [perf_counter()]
    lowered = traced.lower()
    after.append(perf_counter())
    lowered.compile()
    after.append(perf_counter())
    return after[0] - begun, after[1] - after[0], after[2] - after[1]


def best(rounds: Iterable[tuple[float, float, float]]) -> list[float]:
    return [min(column) for column in zip(*rounds, strict=True)]


def main(leaves: int) -> None:
    layer = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 8))}
    tree = {"layers": {str(n): layer for n in range(leaves // len(layer))}}
    for name, plan, by_hand in (
        ("rename", RENAME, renamed),
        ("scale", SCALE, scaled),
        ("transpose", TRANSPOSE, transposed),
    ):
        apply = bs.load(plan).apply
        assert jax.tree.all(jax.tree.map(jnp.array_equal, apply(tree), by_hand(tree)))
        pairs = [(stages(apply, tree), stages(by_hand, tree)) for _ in range(ROUNDS)]
        ours, theirs = best(pair[0] for pair in pairs), best(pair[1] for pair in pairs)
        row = {stage: {"ours_s": round(a, 3), "by_hand_s": round(b, 3), "ratio": round(a / b, 2)}
               for stage, a, b in zip(STAGES, ours, theirs, strict=True)}  # fmt: skip
        print(json.dumps({"plan": name, "leaves": leaves, "backend": jax.default_backend(), **row}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1800)
