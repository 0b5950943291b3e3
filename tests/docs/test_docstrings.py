"""Every public verb has a docstring with arguments, returns, raises, and an example that runs."""

from __future__ import annotations

import doctest
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax import plugins
from tests.checkpoints import write

PLAN = """\
vars: {by: 0.5}
inputs: [model::model.safetensors]
transforms:
  - scale_: {target: 'layers\\..+', by: '${vars.by}'}
output: out.safetensors
"""
OPS = """\
from brainsurgery_jax.op import Form, op


@op(Form("twice", ("target",), ("target",), "existing"), elementwise=True)
def twice(x):
    '''Double a tensor.'''
    return x + x
"""


def verbs() -> Iterator[Any]:
    """The public functions, and the public methods of the classes that they return."""
    for name in bs.__all__:
        if inspect.isfunction(public := getattr(bs, name)):
            yield pytest.param(public, id=name)
    for owner in (bs.Plan, bs.Checkpoint, bs.Session):
        for name in dir(owner):
            method = inspect.getattr_static(owner, name)
            inner = method.__func__ if isinstance(method, classmethod) else method
            ours = inspect.isfunction(inner) and inner.__module__.startswith("brainsurgery_jax")
            if ours and not name.startswith("_") and (owner, name) not in NOT_VERBS:
                yield pytest.param(inner, id=f"{owner.__name__}.{name}")


NOT_VERBS = {(bs.Session, "begin_with"), (bs.Session, "understand")}
"""What our own front ends call: `begin` and `parse` are the public forms of these."""


@pytest.mark.parametrize("verb", list(verbs()))
def test_a_public_verb_says_what_it_takes_returns_and_raises(verb: Callable[..., Any]):
    text = inspect.getdoc(verb) or ""
    takes = [name for name in inspect.signature(verb).parameters if name not in ("self", "cls")]
    wanted = (["**Arguments**: "] if takes else []) + ["**Returns** ", "**Raises** ", "**Example**:"]
    assert [part for part in wanted if part not in text] == []


@pytest.mark.parametrize("verb", list(verbs()))
def test_the_example_of_a_public_verb_runs(verb: Callable[..., Any], here: Path):
    layers = {f"layers.{i}.w": np.ones((4, 4), np.float32) for i in range(2)}
    write("model.safetensors", {"bias": np.arange(4, dtype=np.float32), **layers})
    linear = {"bias": np.arange(3, dtype=np.float32), "kernel": np.ones((2, 3), np.float32)}
    write("linear.safetensors", linear)
    Path("gpt2").mkdir()
    tables = {f"{name}.weight": np.ones((5, 4), np.float32) for name in ("wte", "wpe")}
    write("gpt2/model.safetensors", {**tables, "ln_f.weight": np.ones(4, np.float32)})
    sizes = {"model_type": "gpt2", "vocab_size": 5, "n_embd": 4, "n_layer": 0, "n_head": 2}
    Path("gpt2/config.json").write_text(json.dumps(sizes), encoding="utf-8")
    Path("plan.yaml").write_text(PLAN, encoding="utf-8")
    Path("my_ops.py").write_text(OPS, encoding="utf-8")
    examples = doctest.DocTestFinder(recurse=False).find(verb, verb.__qualname__, globs={"bs": bs})
    assert [example for found in examples for example in found.examples]
    failures: list[str] = []
    with plugins.scope():
        for found in examples:
            doctest.DocTestRunner(verbose=False).run(found, out=failures.append)
    assert not failures, "".join(failures)
