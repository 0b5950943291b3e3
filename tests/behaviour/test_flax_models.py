"""Flax modules with converted checkpoints say what `transformers` says with the originals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import brainsurgery_jax as bs
from tests.behaviour import nnx_models, tiny
from tests.behaviour.flax_decoders import Decoder
from tests.behaviour.flax_models import Bert, Gpt2
from tests.behaviour.flax_t5 import T5
from tests.behaviour.restored import flat, tree

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

EACH = pytest.mark.parametrize(
    ("name", "module"),
    [("gpt2", Gpt2), ("bert", Bert), ("olmo2", Decoder), ("olmoe", Decoder), ("mixtral", Decoder), ("t5", T5)],
    ids=lambda value: value if isinstance(value, str) else "module",
)


@pytest.fixture(autouse=True)
def promotion_as_flax_expects() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def converted(name: str, folder: Path) -> Any:
    """The tree of the tiny model, laid out for Flax, as plain orbax restores it."""
    source = tiny.save(name, folder / "hf")
    bs.convert(str(source), str(folder / "orbax"), layout=f"flax-{name}", durable=False)
    return tree(folder / "orbax")


@EACH
def test_a_converted_model_says_what_the_original_says(name: str, module: type[nn.Module], tmp_path: Path) -> None:
    variables = converted(name, tmp_path)
    with jax.default_matmul_precision("highest"):
        said = module(tiny.config(name)).apply(variables, jnp.asarray(tiny.TOKENS))
    np.testing.assert_allclose(np.asarray(said), tiny.logits(name), atol=1e-4, rtol=0)


@EACH
def test_a_converted_model_has_the_tree_that_the_module_makes(
    name: str, module: type[nn.Module], tmp_path: Path
) -> None:
    fresh = jax.eval_shape(module(tiny.config(name)).init, jax.random.key(0), jnp.asarray(tiny.TOKENS))
    found = converted(name, tmp_path)
    assert {n: x.shape for n, x in flat(found).items()} == {n: x.shape for n, x in flat(fresh).items()}


def test_a_plain_module_of_nnx_is_filled_by_one_call(tmp_path: Path) -> None:
    source = tiny.save("gpt2", tmp_path / "hf")
    abstract = nnx.eval_shape(lambda: nnx_models.Gpt2(tiny.config("gpt2"), nnx.Rngs(0)))
    model = bs.open(str(source)).to_nnx(abstract, layout="flax-gpt2")
    with jax.default_matmul_precision("highest"):
        said = model(jnp.asarray(tiny.TOKENS))
    np.testing.assert_allclose(np.asarray(said), tiny.logits("gpt2"), atol=1e-4, rtol=0)
