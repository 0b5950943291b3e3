"""`demo`: a checkpoint small enough to read, a plan worth reading, and what the commands say to it."""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.rendering.text import align_columns

LAYERS, WIDTH, WORDS, PLACES = 2, 64, 256, 32

PLAN = r"""# Make a small GPT-2 smaller: factorize its MLPs, halve the precision of the rest.
inputs:
  - base::base
vars:
  rank: 8
transforms:
  - move: {from: 'transformer\.(.+)', to: 'model.\1'}
  - scale_: {target: 'model.wte.weight::[:16]', by: 0.5}
  - phlora:
      target: '(model\.h\.\d+\.mlp\.c_(?:fc|proj))\.weight'
      target_a: '\1.lora_a'
      target_b: '\1.lora_b'
      rank: ${vars.rank}
  - cast_: {target: '.*', to: bfloat16}
  - assert:
      all:
        - {count: {of: 'model\..+\.lora_[ab]', is: 8}}
        - {shape: {of: 'model\.h\.\d+\.mlp\.c_fc\.lora_a', is: [8, 256]}}
        - {not: {iszero: model.ln_f.weight}}
output: small/
"""


def demo(keep: str | None, *, json: bool = False) -> None:
    """Create a checkpoint and a plan, then check, explain, run and inspect. Raises StoreError."""
    from brainsurgery_jax.cli import plans
    from brainsurgery_jax.cli.inspect_ import inspect

    with _folder(keep) as folder, chdir(folder):
        _make()
        if json:
            show.json(plan=PLAN, commands=[{"command": name, "result": data} for name, data in _run_commands()])
            return
        show.result("The folder base/ holds a checkpoint with the names of GPT-2. This is plan.yaml:\n")
        show.result("\n".join(f"    {line}" for line in PLAN.splitlines()))
        _say("check plan.yaml", "reports every mistake, from headers alone:")
        plans.check(["plan.yaml"], overwrite=False, shard_size="5GB", json=False)
        _say("explain plan.yaml", "shows what each step matches:")
        plans.explain(["plan.yaml"], overwrite=False, shard_size="5GB", json=False)
        _say("run plan.yaml", "executes the plan:")
        plans.run(["plan.yaml"], plans.Choices())
        _say("inspect small", "lists the result:")
        inspect("small", None, "compact", stats=False)
    show.result(_next(keep))


def _run_commands() -> Iterator[tuple[str, Mapping[str, object]]]:
    """The commands of the demo, and what each prints with `--json`."""
    from brainsurgery_jax import api
    from brainsurgery_jax.checkpoint import Checkpoint
    from brainsurgery_jax.cli import plans
    from brainsurgery_jax.rendering.data import record_data
    from brainsurgery_jax.reports.explanation import report_explanation
    from brainsurgery_jax.reports.inspection import report_inspection

    plan, choices = api.load("plan.yaml"), plans.Choices()
    program = api.lower_plan(plan)
    yield "check plan.yaml", plans.check_as_data(program.diagnostics, program.publications)
    yield "explain plan.yaml", record_data(report_explanation(api.explain(plan), None))
    files = plans.files_of(choices.overwrite, choices.shard_size)
    yield "run plan.yaml", plans.run_as_data(plan, plans.options_of(choices), files, choices)
    yield "inspect small", record_data(report_inspection(Checkpoint.open("small"), {}, compact=True))


def _say(command: str, what: str) -> None:
    show.result(f"\n$ brainsurgery-jax {command}      # {what}\n")


def _next(keep: str | None) -> str:
    """Commands to try; those on the demo's files only where the files stay."""
    again = [
        (f"cd {keep}", "the folder of the demo"),
        ("brainsurgery-jax plan.yaml vars.rank=4 --overwrite", "another rank"),
    ]
    fresh = [("brainsurgery-jax demo --keep DIR", "run the demo again and keep its files")]
    more = [
        ("brainsurgery-jax ops", "list all ops"),
        ("brainsurgery-jax ops phlora", "describe one op"),
        ("brainsurgery-jax schema", "print the JSON Schema, for editors"),
    ]
    rows = [(f"  {command}", f"# {what}") for command, what in (again if keep else fresh) + more]
    return "\n".join(["", "What next:", *align_columns(rows)])


@contextmanager
def _folder(keep: str | None) -> Iterator[str]:
    if keep is None:
        with TemporaryDirectory(prefix="brainsurgery-demo-") as folder:
            yield folder
        return
    folder = os.path.expanduser(keep)
    try:
        os.makedirs(folder, exist_ok=True)
        taken = os.listdir(folder)
    except OSError as error:
        raise StoreError(folder, f"cannot be created: {error.strerror}", remedy="Choose another folder.") from error
    if taken:
        raise StoreError(folder, "is not empty", remedy="Choose a new or an empty folder for the demo.")
    yield folder


def _make() -> None:
    from safetensors.numpy import save_file

    os.mkdir("base")
    save_file(weights(), "base/model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "n_layer": LAYERS,
        "n_embd": WIDTH,
        "n_head": 4,
        "vocab_size": WORDS,
        "n_positions": PLACES,
    }
    Path("base/config.json").write_text(jsonlib.dumps(config, indent=2) + "\n", encoding="utf-8")
    Path("plan.yaml").write_text(PLAN, encoding="utf-8")


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a GPT-2, whose linear layers keep their matrices as [in, out]."""
    d = WIDTH
    layer = {
        "ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,), "mlp.c_proj.weight": (4 * d, d),
        "mlp.c_proj.bias": (d,),
    }  # fmt: skip
    names = {"wte.weight": (WORDS, d), "wpe.weight": (PLACES, d)}
    names |= {f"h.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    return {f"transformer.{name}": shape for name, shape in (names | {"ln_f.weight": (d,), "ln_f.bias": (d,)}).items()}


def weights() -> dict:
    """Weights as a fresh model has them: small normal matrices, norms of one, biases of zero."""
    import numpy as np

    rng = np.random.default_rng(0)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) > 1:
            return (rng.standard_normal(shape) * 0.02).astype(np.float32)
        return np.full(shape, float(name.endswith("weight")), np.float32)

    return {name: value(name, shape) for name, shape in shapes().items()}
