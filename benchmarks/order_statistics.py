"""How fast are quantiles, medians and k-th largest elements of a large tensor, beside numpy's partition?

    python benchmarks/order_statistics.py [--elements N] [--repetitions N]

One float32 tensor of 16.8 million elements (4096 columns), in memory. Each expression is computed by `apply` on a numpy
array, which goes by as in `run`, and under `jax.jit` on the default device, compiled before. The least of some
repetitions counts. All of them give the bits of numpy, which is checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

import brainsurgery_jax as bs

COLUMNS = 4096
EXPRESSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "quantile(x, 0.9)": lambda x: np.quantile(x, np.asarray(0.9)),
    "median(x)": lambda x: np.asarray(np.median(x)),
    "kth_largest(x, 100000)": lambda x: np.partition(x, x.size - 100_000, axis=None)[x.size - 100_000],
    "quantile(x, 0.9, axis=1)": lambda x: np.quantile(x, np.asarray(0.9), axis=1),
}


def seconds(call: Callable[[], object], repetitions: int) -> float:
    """The least time of some calls."""
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    x = np.random.default_rng(0).standard_normal(options.elements, np.float32).reshape(-1, COLUMNS)
    on_device = jax.numpy.asarray(x)
    print(f"| expression, {x.size / 1e6:.1f} M float32 | numpy | apply | jit, {jax.devices()[0].platform} |")
    print("|---|---:|---:|---:|")
    for expr, oracle in EXPRESSIONS.items():
        plan = bs.load({"transforms": [{"compute": {"from": {"x": "x"}, "expr": expr, "to": "made"}}]})
        compiled = jax.jit(lambda tree, plan=plan: plan.apply(tree)["made"])
        for found in (plan.apply({"x": x})["made"], compiled({"x": on_device})):
            np.testing.assert_array_equal(np.asarray(found), oracle(x).astype(np.float32))
        times = [
            seconds(lambda oracle=oracle: oracle(x), options.repetitions),
            seconds(lambda plan=plan: plan.apply({"x": x}), options.repetitions),
            seconds(lambda made=compiled: jax.block_until_ready(made({"x": on_device})), options.repetitions),
        ]
        print(f"| `{expr}` | {' | '.join(f'{t:.2f} s' for t in times)} |")


if __name__ == "__main__":
    main()
