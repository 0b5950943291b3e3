"""Models for images and sound, and EasyLM's Llama, say with converted weights what the originals say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import brainsurgery_jax as bs
from tests.behaviour import plain_models, tiny
from tests.behaviour.bigvision_models import TwoTowers, Vit
from tests.behaviour.restored import flat, tree
from tests.checkpoints import normal

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

IMAGES = normal((2, 12, 12, 3))
SOUND = normal((2, 24, 8))


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_matmul_precision("highest"),
    ):
        yield


def said(name: str, **inputs: np.ndarray) -> Any:
    """What the model of `transformers` says; images and sound come with channels first there."""
    given = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in inputs.items()}
    with torch.no_grad():
        return tiny.model(name)(**given)


def pixels() -> np.ndarray:
    return IMAGES.transpose(0, 3, 1, 2)


def converted(name: str, layout: str, folder: Path) -> Any:
    """The tree of the tiny model in a layout, as plain orbax restores it."""
    source = tiny.save(name, folder / "hf")
    bs.convert(str(source), str(folder / "orbax"), layout=layout, to="orbax", durable=False)
    return jax.tree.map(jnp.asarray, tree(folder / "orbax"))


def published(name: str, layout: str, folder: Path) -> Mapping[str, Any]:
    """The tree of the tiny model out of an npz, whose names have slashes."""
    source = tiny.save(name, folder / "hf")
    bs.convert(str(source), str(folder / "model.npz"), layout=layout, durable=False)
    made: dict[str, Any] = {}
    with np.load(folder / "model.npz") as arrays:
        for path in arrays.files:
            *parents, leaf = path.split("/")
            branch = made
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[leaf] = jnp.asarray(arrays[path])
    return made


def agree(module: nn.Module, params: Any, inputs: tuple[np.ndarray, ...], wanted: np.ndarray) -> None:
    """Assert that a module has this tree, and says with it what is wanted."""
    fresh = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    assert {n: x.shape for n, x in flat(params).items()} == {n: x.shape for n, x in flat(fresh).items()}
    said_here: Any = module.apply({"params": params}, *inputs)
    np.testing.assert_allclose(said_here, wanted, atol=1e-4, rtol=0)


def test_a_vit_of_big_vision_says_what_the_original_says(tmp_path: Path) -> None:
    wanted = said("vit", pixel_values=pixels()).logits.numpy()
    agree(Vit(tiny.config("vit"), 5), published("vit", "bigvision", tmp_path), (IMAGES,), wanted)


def test_siglip_of_big_vision_says_what_the_original_says(tmp_path: Path) -> None:
    wanted = said("siglip", pixel_values=pixels(), input_ids=tiny.TOKENS.astype(np.int64)).logits_per_image.numpy()
    found = published("siglip", "bigvision", tmp_path)
    assert [*found] == ["params"]
    agree(TwoTowers(tiny.config("siglip")), found["params"], (IMAGES, tiny.TOKENS), wanted)


def test_a_stack_holds_what_separate_blocks_hold(tmp_path: Path) -> None:
    apart = published("vit", "bigvision", tmp_path)["Transformer"]
    bs.convert(str(tmp_path / "hf"), str(tmp_path / "scan.npz"), layout="bigvision", scan=True, durable=False)
    with np.load(tmp_path / "scan.npz") as arrays:
        for name, x in flat(apart["encoderblock_0"]).items():
            stacked = arrays[f"Transformer/encoderblock/{name.replace('.', '/')}"]
            assert stacked.shape == (3, *x.shape)
            np.testing.assert_array_equal(stacked[0], x)


def test_a_vit_as_google_published_it_has_its_own_names(tmp_path: Path) -> None:
    there, here = (flat(published("vit", name, tmp_path / name)) for name in ("vitjax-vit", "bigvision-vit"))
    words = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0", "DotProductAttention_1": "DotProductAttention_0",
             "Transformer.posembed_input.": ""}  # fmt: skip
    for name, x in there.items():
        for old, new in words.items():
            name = name.replace(old, new)
        np.testing.assert_array_equal(x, here.pop(name))
    assert not here


@pytest.mark.parametrize(
    ("name", "layout", "model"),
    [
        ("vit", "flax-vit", plain_models.vit),
        ("dinov2", "flax-dinov2", plain_models.dinov2),
        ("dinov2-swiglu", "flax-dinov2", plain_models.dinov2),
        ("dinov2_with_registers", "flax-dinov2", plain_models.dinov2),
    ],
)  # fmt: skip
def test_an_encoder_of_images_says_what_the_original_says(
    tmp_path: Path, name: str, layout: str, model: Callable[..., Any]
) -> None:
    wanted = said(name, pixel_values=pixels()).logits.numpy()
    found = model(converted(name, layout, tmp_path)["params"], tiny.config(name), IMAGES)
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_clip_says_what_the_original_says(tmp_path: Path) -> None:
    wanted = said("clip", pixel_values=pixels(), input_ids=tiny.TOKENS.astype(np.int64)).logits_per_image.numpy()
    found = plain_models.clip(
        converted("clip", "flax-clip", tmp_path)["params"], tiny.config("clip"), jnp.asarray(IMAGES), tiny.TOKENS
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_whisper_says_what_the_original_says(tmp_path: Path) -> None:
    tokens = tiny.TOKENS.astype(np.int64)
    wanted = said("whisper", input_features=SOUND.transpose(0, 2, 1), decoder_input_ids=tokens).logits.numpy()
    params = converted("whisper", "flax-whisper", tmp_path)["params"]
    found = plain_models.whisper(params, tiny.config("whisper"), jnp.asarray(SOUND), tiny.TOKENS)
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_easylm_says_what_the_original_says(tmp_path: Path) -> None:
    params = converted("llama", "easylm-llama", tmp_path)["params"]
    found = plain_models.easylm_llama(params, tiny.config("llama"), tiny.TOKENS)
    np.testing.assert_allclose(found, tiny.logits("llama"), atol=1e-4, rtol=0)
