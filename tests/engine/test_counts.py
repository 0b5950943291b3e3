"""What a run costs, in counts: bytes read, compilations, factorizations, results held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.api import run
from brainsurgery_jax.engine.compute.evaluate import Evaluator
from brainsurgery_jax.engine.compute.kernels import compiled
from brainsurgery_jax.ops import elementwise, lowrank
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, plan_of, read, run_plan, set_block, write


def bytes_read(folder: Path, tensors: dict[str, Any], transforms: Any) -> int:
    """Tensor bytes that a run reads into memory (not those copied from file to file)."""
    files = Files()
    run(bs.load(plan_of(folder, tensors, transforms)), world=files, durable=False)
    return files.bytes_read


def test_a_slice_of_rows_is_copied_without_reading_anything(tmp_path: Path) -> None:
    steps = [{"copy": {"from": "w::[2:4]", "to": "v"}}, {"delete": {"target": "w"}}]
    assert bytes_read(tmp_path, {"w": normal((64, 100))}, steps) == 0


def test_computing_on_a_slice_reads_that_slice_only(tmp_path: Path) -> None:
    steps = [{"scale_": {"target": "w::[2:4]", "by": 2}}]
    assert bytes_read(tmp_path, {"w": normal((64, 100))}, steps) == 2 * 100 * 4


EXPERTS = {f"e.{k}": normal((100, 64), seed=k) for k in range(4)}
MOVED = [
    ({"stack": {"from": r"e\.(?P<k>\d)", "to": "new", "over": "k"}}, EXPERTS),
    ({"concat": {"from": r"e\.(?P<k>\d)", "to": "new", "over": "k"}}, EXPERTS),
    ({"unstack": {"from": "w", "to": "new.${k}", "over": "k"}}, {"w": normal((4, 100, 64))}),
    ({"split": {"from": "w", "to": "new.${k}", "over": "k", "sizes": [1, 3]}}, {"w": normal((4, 100, 64))}),
    ({"take": {"from": "w", "to": "new", "indices": [3, 0, 0, -2]}}, {"w": normal((4, 200, 128))}),
    ({"repeat": {"from": "w", "to": "new", "times": 3, "mode": "tile"}}, {"w": normal((200, 128))}),
    ({"repeat": {"from": "w", "to": "new", "times": 2, "mode": "each"}}, {"w": normal((3, 200, 128))}),
    ({"transpose": {"from": "w", "to": "new", "axes": [0, 1]}}, {"w": normal((1, 200, 128))}),
    ({"pad": {"from": "w", "to": "new", "width": [[1, 2], 0]}}, {"w": normal((200, 128))}),
]


@pytest.mark.parametrize(("step", "tensors"), MOVED, ids=[next(iter(step)) for step, _ in MOVED])
def test_pieces_that_lie_together_are_copied_without_reading_anything(
    tmp_path: Path, step: dict, tensors: dict[str, Any]
) -> None:
    assert bytes_read(tmp_path, tensors, [step, *({"delete": {"target": name}} for name in tensors)]) == 0


def test_taking_columns_reads_the_matrix_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 1 << 10)
    w = normal((200, 64))
    steps = [{"take_": {"target": "w", "indices": [*range(63, -1, -1)], "dim": 1}}]
    assert bytes_read(tmp_path, {"w": w}, steps) == w.nbytes


def test_a_tensor_that_nothing_needs_is_not_read(tmp_path: Path) -> None:
    steps = [{"scale": {"from": "w", "to": "v", "by": 2}}, {"delete": {"target": "v"}}]
    assert bytes_read(tmp_path, {"w": normal((64, 100))}, steps) == 0


def test_renaming_never_loads_jax(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        {"w": normal((8, 8))},
        [{"move": {"from": "w", "to": "v"}}, {"assert": {"shape": {"of": "v", "is": [8, 8]}}}],
    )
    code = f"import sys, brainsurgery_jax as bs; bs.load({plan!r}).run(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"
    assert list(read(plan["output"]["path"])) == ["v"]


@pytest.mark.parametrize(
    "step",
    [
        {"scale_": {"target": "w", "by": 0.5}},
        {"cast_": {"target": "w", "to": "bfloat16"}},
        {"add_": {"from": "v", "to": "w"}},
        {"divide_": {"from": "v", "to": "w"}},
        {"lerp_": {"from": "v", "to": "w", "t": 0.5}},
        {"transpose_": {"target": "w"}},
        {"pad_": {"target": "w", "shape": [-1, 512], "value": 1}},
        {"take_": {"target": "w", "indices": [3, 3, -1], "dim": 1}},
        {"repeat_": {"target": "w", "times": 2, "mode": "each", "dim": 1}},
        {"reduce": {"from": "w", "to": "norms", "mode": "norm", "dim": 1}},
        {"einsum": {"from_a": "w", "from_b": "v", "to": "new", "equation": "ij,kj->ik"}},
        {"stack": {"from": ["w", "v"], "to": "new", "dim": -1}},
        {"unstack": {"from": "w", "to": "new.${k}", "over": "k", "dim": 1}},
        {"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": 4}},
        {"assert": {"equal": {"left": "w", "right": "w"}}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_what_numpy_does_on_a_machine_without_accelerator_never_loads_jax(tmp_path: Path, step: dict) -> None:
    plan = plan_of(tmp_path, {"w": normal((400, 300)), "v": normal((400, 300), seed=1)}, [step])
    code = f"import sys, brainsurgery_jax as bs; bs.load({plan!r}).run(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float8_e4m3fn"])
def test_casting_bfloat16_never_loads_jax(tmp_path: Path, dtype: str) -> None:
    w = normal((400, 300)).astype(ml_dtypes.bfloat16)
    plan = plan_of(tmp_path, {"w": w}, [{"cast_": {"target": "w", "to": dtype}}])
    code = f"import sys, brainsurgery_jax as bs; bs.load({plan!r}).run(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"


def test_forty_layers_and_any_number_share_one_compilation(tmp_path: Path) -> None:
    layers = {f"h.{i}.w": normal((30, 20), seed=i).astype(np.float16) for i in range(40)}
    compiled.cache_clear()
    for t in (0.1, 0.2, 0.3):
        run_plan(tmp_path, layers, {"lerp": {"from_a": "(.*)", "from_b": "h.0.w", "to": r"\1", "t": t}})
    lerp: Any = compiled(elementwise.lerp, ())
    assert compiled.cache_info().misses == 1
    assert lerp._cache_size() == 1  # jit's own count of what it compiled


def test_both_factors_come_of_one_factorization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []
    compute = Evaluator.compute

    def counted(self: Evaluator, call: Any, *rest: Any) -> Any:
        computed.append(call)
        return compute(self, call, *rest)

    monkeypatch.setattr(Evaluator, "compute", counted)
    layers = {f"h.{i}.w": normal((9, 7), seed=i) for i in range(5)}
    step = {"phlora": {"target": r"(.*)\.w", "target_a": r"\1.A", "target_b": r"\1.B", "rank": 2}}
    made = run_plan(tmp_path, layers, step)
    assert len(made) == 10
    assert [c.kernel for c in computed] == [lowrank.factors] * 5


def test_factors_are_dropped_after_their_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    evaluators: list[Evaluator] = []
    compute = Evaluator.compute

    def watched(self: Evaluator, call: Any, *rest: Any) -> Any:
        result = compute(self, call, *rest)
        held.append(len(self.wholes))
        evaluators.append(self)
        return result

    monkeypatch.setattr(Evaluator, "compute", watched)
    layers = {f"h.{i}.w": normal((40, 30), seed=i) for i in range(20)}
    run_plan(tmp_path, layers, {"phlora_": {"target": ".*", "rank": 2}})
    assert max(held) < 10, "factorizations pile up"
    assert all(not e.wholes for e in evaluators)


def test_checking_starts_no_backend(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"w": normal((8, 8))})
    plan = {"inputs": [f"m::{source}"], "transforms": [{"matmul": {"from_a": "w", "from_b": "w", "to": "v"}}]}
    code = (
        f"import brainsurgery_jax as bs; print(bs.check(bs.load({plan!r})));"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["()", "False"]


def test_the_suite_runs_jax_strictly() -> None:
    config: Any = jax.config
    assert config.jax_numpy_dtype_promotion == "strict"
    assert config.jax_numpy_rank_promotion == "raise"


def test_a_comparison_stops_reading_a_tensor_at_the_first_block_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block(monkeypatch, 1 << 10)
    long = np.zeros(64 << 10, np.float32)
    steps = [{"diff": {"left": "a::w", "right": "b::w", "figures": False}}]
    assert bytes_read(tmp_path, {"a": {"w": long}, "b": {"w": long + 1}}, steps) <= 2 * long.nbytes // 4
    assert bytes_read(tmp_path, {"a": {"w": long}, "b": {"w": long}}, steps) == 2 * long.nbytes
    measured = [{"diff": {"left": "a::w", "right": "b::w"}}]
    assert bytes_read(tmp_path, {"a": {"w": long}, "b": {"w": long + 1}}, measured) == 2 * long.nbytes
