"""How fast is batched low rank on this machine's accelerator, beside torch, and beside what the card can do at all?

    python benchmarks/gpu.py            16 matrices of 4096 x 4096, rank 64, then PHLoRA of a GPT-2 from file to file
    python benchmarks/gpu.py --small    4 matrices of 768 x 768, rank 16
    python benchmarks/gpu.py --simulate the same on the CPU in the place of an accelerator, to see that all of it runs

Where there is no accelerator, the small ones are taken, and ours is what it is there: numpy on one matrix at a time.
What no rung of the accelerator certifies is computed on the host, as the engine does; the method then says so.
Every method's error is measured against the optimum, which torch's svdvals in float64 gives. `torch.svd_lowrank` gets
as many iterations as it needs to be as accurate as ours. Matrices are on the device before the clock starts.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch works on the same card

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _checkpoints import checkpoint, value_like
from _jobs import plan_job
from _measure import say

from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.engine.compute.batches import vectorise
from brainsurgery_jax.engine.compute.devices import HOST, Accelerators, accelerators
from brainsurgery_jax.engine.compute.ladder import attempt
from brainsurgery_jax.engine.plan.sites import MOST
from brainsurgery_jax.op import Rung, Static
from brainsurgery_jax.ops.lowrank import factors

OWN = Accelerators(jax.local_devices()[:1]) if "--simulate" in sys.argv else accelerators()

TOL = 1e-4
REPETITIONS = 3


def main() -> None:
    """Measure, and print one JSON line a question."""
    small = "--small" in sys.argv or OWN.backend in ("cpu", "simulated")
    count, side, rank = (4, 768, 16) if small else (16, 4096, 64)
    stacked = np.stack([value_like((side, side), np.random.default_rng(seed)) for seed in range(count)])
    cuda = torch.cuda.is_available()
    on_torch = torch.from_numpy(stacked).to("cuda" if cuda else "cpu")
    best = torch.linalg.svdvals(on_torch[:2].double())[:, rank:].square().sum(-1).sqrt().cpu().numpy()
    excess = partial(worst_excess, stacked, best)
    limits = device_limits(jnp.asarray(stacked[0]))
    seconds, (b, a), way = ours(stacked, rank)
    rows = {f"ours ({way})": (seconds, excess(b, a))}
    rows["torch.linalg.svd"] = by_svd(on_torch, rank, excess)
    rows |= by_svd_lowrank(on_torch, rank, excess)
    for name, (wall, error) in rows.items():
        say(question=f"rank {rank} of {count} x {side} x {side}", method=name, seconds=wall, excess=error,
            times_ours=round(wall / seconds, 2))  # fmt: skip
    products = 2 * count * side * side
    say(question="limits", device=str(jax.devices()[0]), torch_device=str(on_torch.device), **limits,
        least_seconds_by_bandwidth=2 * stacked.nbytes / (limits["gb_per_s"] * 1e9),
        least_seconds_by_products=products * 4 * 3.5 * rank / (limits["gflop_per_s"] * 1e9))  # fmt: skip
    run = min((plan_job("phlora", base=checkpoint("gpt2"))() for _ in range(REPETITIONS)), key=lambda r: r.wall)
    say(question="phlora rank 16, GPT-2, file to file", seconds=round(run.wall, 2))


def timed(function: Callable[[], Any], wait: Callable[[Any], None]) -> tuple[float, Any]:
    """The median of some runs after a first one, and the last result."""
    spent, result = [], None
    for _ in range(REPETITIONS + 1):
        begun = time.perf_counter()
        result = function()
        wait(result)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent[1:]), result


def ours(stacked: np.ndarray, rank: int) -> tuple[float, tuple[np.ndarray, np.ndarray], str]:
    """The engine's own batch, rung by rung until every member is certified."""
    static = (("rank", rank), ("method", "auto"))
    rungs = rungs_on(OWN.backend, static, stacked.shape[1:])
    if OWN.devices:
        with jax.enable_x64(True):
            groups = [jnp.asarray(stacked[at : at + MOST]) for at in range(0, len(stacked), MOST)]  # as the engine does
            seconds, made = timed(
                lambda: [_batched(rungs, group) for group in groups], lambda r: finished([value for value, _ in r])
            )
            b, a = (np.concatenate([np.asarray(value[i]) for value, _ in made]) for i in (0, 1))
            return seconds, (b, a), made[0][1]
    seconds, made = timed(lambda: [_climbed(rungs, [x], _numbers(None, k)) for k, x in enumerate(stacked)], finished)
    return seconds, (np.stack([b for (b, _), _ in made]), np.stack([a for (_, a), _ in made])), made[0][1]


def rungs_on(backend: str, static: Static, shape: tuple[int, ...]) -> list[Rung]:
    """The rungs of a factorization on a backend."""
    assert factors.rungs is not None
    found = factors.rungs((Aval(shape, FLOAT32),), dict(static), backend)
    return [rung._replace(static=(*static, *rung.static)) for rung in found]


def _numbers(count: int | None, first: int = 0) -> dict[str, Any]:
    """The parameters of one matrix, or of a batch."""
    if count is None:
        return {"tol": np.float64(TOL), "key_high": np.float64(first), "key_low": np.float64(0)}
    return {"tol": jnp.full(count, TOL), "key_high": jnp.arange(float(count)), "key_low": jnp.zeros(count)}


def _batched(rungs: Sequence[Rung], stacked: Any) -> tuple[Any, str]:
    state, static = None, rungs[0].static[:2]
    numbers = {name: x.astype(jnp.float32) for name, x in _numbers(len(stacked)).items()}
    for rung in rungs:
        value, accepted, _, state = vectorise(rung, OWN.backend)([stacked], numbers, state)
        if bool(accepted.all()):
            return value, rung.name
    rungs = rungs_on(HOST, static, stacked.shape[1:])
    made = [_climbed(rungs, [x], _numbers(None, k)) for k, x in enumerate(np.asarray(stacked))]
    return tuple(np.stack([value[i] for value, _ in made]) for i in (0, 1)), f"host: {made[0][1]}"


def _climbed(rungs: Sequence[Rung], arrays: list[np.ndarray], numbers: dict[str, Any]) -> tuple[Any, str]:
    state = None
    for rung in rungs:
        value, accepted, _, state = attempt(rung)(arrays, numbers, state)
        if accepted:
            return value, rung.name
    raise AssertionError("the last rung accepts")


def worst_excess(stacked: np.ndarray, best: np.ndarray, b: Any, a: Any) -> float:
    """The largest relative excess error of the first two matrices."""
    pairs = zip(stacked[:2], b, a, strict=False)
    errors = [np.linalg.norm(x - np.asarray(bi, np.float64) @ np.asarray(ai, np.float64)) for x, bi, ai in pairs]
    return float(max(error / least - 1 for error, least in zip(errors, best, strict=True)))


def finished(result: Any) -> None:
    """Wait for the devices."""
    jax.block_until_ready(result)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def by_svd(x: torch.Tensor, rank: int, excess: Callable[[Any, Any], float]) -> tuple[float, float]:
    """The full decomposition."""
    seconds, (u, s, vh) = timed(lambda: torch.linalg.svd(x, full_matrices=False), finished)
    return seconds, excess((u * s[:, None])[:2, :, :rank].cpu().numpy(), vh[:2, :rank].cpu().numpy())


def by_svd_lowrank(x: torch.Tensor, rank: int, excess: Callable[[Any, Any], float]) -> dict[str, tuple[float, float]]:
    """torch's randomized method as it comes, and with the iterations that our tolerance takes."""
    rows = {}
    for iterations in (2, 4, 8, 16, 32, 64):
        torch.manual_seed(0)
        seconds, (u, s, v) = timed(lambda n=iterations: torch.svd_lowrank(x, q=rank + 8, niter=n), finished)
        error = excess((u * s[:, None])[:2, :, :rank].cpu().numpy(), v[:2, :, :rank].mT.cpu().numpy())
        if iterations == 2 or error <= TOL or iterations == 64:
            rows[f"torch.svd_lowrank, niter={iterations}"] = seconds, error
        if error <= TOL:
            break
    return rows


def device_limits(x: jax.Array) -> dict[str, float]:
    """Products in float32, and bytes read and written, that the device does in a second."""
    with jax.default_matmul_precision("highest"):
        product = jax.jit(lambda w: w @ w)
        by_product, _ = timed(lambda: product(x), jax.block_until_ready)
    wide = jnp.tile(x, (8, 1))
    double = jax.jit(lambda w: w * 2)
    by_copy, _ = timed(lambda: double(wide), jax.block_until_ready)
    return {
        "gflop_per_s": round(2 * x.shape[0] ** 3 / by_product / 1e9),
        "gb_per_s": round(2 * wide.nbytes / by_copy / 1e9),
    }


if __name__ == "__main__":
    main()
