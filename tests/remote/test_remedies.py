"""What messages on remote places advise, followed."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from tests.remote.servers import Served

SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("wrong", "remedy", "right"),
    [
        ("hf://org/modle", "Check the name. For a private model, run `hf auth login` first.", "hf://org/model"),
        ("hf://org/model@v9", "Check the name of the branch, tag or commit.", "hf://org/model@v1"),
        ("hf://org/model/weights", "Check the path in the repository.", f"hf://org/model/{SHARD}"),
        ("hf://model", "Write hf://ORG/MODEL, hf://ORG/MODEL@REVISION", "hf://org/model"),
        ("{url}/org/model/nothing.safetensors", "Check the address.", "{url}/org/model/" + SHARD),
        ("{url}/", "Name a file, or the index of a sharded checkpoint", "{url}/org/model/model.safetensors.index.json"),
        ("hub://org/model", "Use hf://, https://, s3:// or gs://", "hf://org/model"),
        ("memory://nothing/here", "Check the address.", "hf://org/model"),
        ("org/model", "A model of the Hugging Face hub is named 'hf://org/model'.", "hf://org/model"),
    ],
)
def test_an_address_that_is_mended_as_advised_is_read(server: Served, wrong: str, remedy: str, right: str) -> None:
    with pytest.raises(StoreError) as caught:
        bs.open(wrong.format(url=server.url))
    assert remedy in caught.value.remedy
    assert len(bs.open(right.format(url=server.url))) in (4, 8)


def test_a_private_model_is_read_after_a_login(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "hf_secret"
    with pytest.raises(StoreError, match="hf auth login"):
        bs.open("hf://org/model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(bs.open("hf://org/model")) == 8


def test_a_gated_model_is_read_after_its_conditions_are_accepted(server: Served) -> None:
    server.gated = True
    with pytest.raises(StoreError) as caught:
        bs.open("hf://org/model")
    assert caught.value.remedy == "Accept its conditions on its page, then run `hf auth login`."
    server.gated = False
    assert len(bs.open("hf://org/model")) == 8


def test_the_hub_is_found_once_its_address_is_right(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    right = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError) as caught:
        bs.open("hf://org/model")
    assert caught.value.remedy == "Check the network and try again. HF_ENDPOINT names the hub."
    monkeypatch.setattr(constants, "ENDPOINT", right)
    assert len(bs.open("hf://org/model")) == 8


def test_a_file_of_a_server_without_ranges_is_read_once_it_is_downloaded(server: Served, tmp_path: Path) -> None:
    server.ranges = False
    url = f"{server.url}/org/model/{SHARD}"
    with pytest.raises(StoreError, match="Download the file first"):
        bs.open(url)
    urllib.request.urlretrieve(url, tmp_path / "downloaded.safetensors")
    assert len(bs.open(str(tmp_path / "downloaded.safetensors"))) == 4


def test_a_torch_model_is_read_once_it_is_downloaded(server: Served, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "served/org/torch").mkdir()
    torch.save({"w": torch.ones(2)}, tmp_path / "served/org/torch/pytorch_model.bin")
    with pytest.raises(StoreError) as caught:
        bs.open("hf://org/torch")
    assert caught.value.remedy == "Download it first: of remote places, safetensors files and adapters are read."
    urllib.request.urlretrieve(f"{server.url}/org/torch/pytorch_model.bin", tmp_path / "pytorch_model.bin")
    assert len(bs.open(str(tmp_path / "pytorch_model.bin"))) == 1


def test_a_run_whose_server_was_busy_is_repeated(server: Served) -> None:
    found = bs.open("hf://org/model")
    server.failures = [503] * 5
    with pytest.raises(StoreError, match="Check the network, then run again"):
        found["model.layers.0.w"]
    assert found["model.layers.0.w"].shape == (256, 1024)


def test_a_run_whose_file_was_replaced_is_repeated(server: Served, model: Path) -> None:
    url = f"{server.url}/org/model/{SHARD}"
    found = bs.open(url)
    (model / SHARD).write_bytes((model / "model-00002-of-00002.safetensors").read_bytes()[:-4])
    with pytest.raises(StoreError, match="Somebody replaced it; run again"):
        found["model.layers.0.w"]
    (model / SHARD).write_bytes((model / "model-00002-of-00002.safetensors").read_bytes())
    assert len(bs.open(url)) == 4


def test_a_store_that_refuses_is_read_with_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import fsspec
    import numpy as np
    from safetensors.numpy import save

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/m.safetensors", save({"w": np.ones(2, np.float32)}))

    def refuse(self: object, *arguments: object, **more: object) -> io.BytesIO:
        raise PermissionError("Forbidden: key AKIA")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", refuse)
        with pytest.raises(StoreError, match="Check the address and your credentials") as caught:
            bs.open("memory://bucket/m.safetensors")
        assert "AKIA" not in str(caught.value)
    assert len(bs.open("memory://bucket/m.safetensors")) == 1
    memory.rm("/bucket", recursive=True)


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError) as caught:
        bs.open("gs://bucket/model")
    assert (caught.value.problem, caught.value.remedy) == ("needs gcsfs", "Install it: `pip install gcsfs`.")
