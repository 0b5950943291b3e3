"""S3 as it is spoken: by its driver to a server on this machine. `make object-store` runs this; driver and server want
older versions of other packages, so that they have an environment of their own."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from safetensors.numpy import save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, StoreError


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"model.layers.{i}.w": random.standard_normal((256, 1024), np.float32) for i in range(8)}


@pytest.fixture
def model(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model/model.safetensors")
    (tmp_path / "model/config.json").write_text('{"model_type": "llama", "num_hidden_layers": 8}')
    return tmp_path / "model"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A bucket of a server on a free port, whose address and keys lie where the driver looks for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="models")
    yield "s3://models"
    server.stop()


def test_a_plan_reads_a_bucket_and_writes_to_it(bucket: str, model: Path, tensors: dict[str, np.ndarray]) -> None:
    first, second = f"{bucket}/team/first/", f"{bucket}/team/second/"
    bs.run(bs.load({"inputs": [f"m::{model}"], "transforms": [], "output": {"path": first, "shard": "4MB"}}))
    step = {"scale_": {"target": "model.layers.0.w", "by": 2.0}}
    bs.run(bs.load({"inputs": [f"m::{first}"], "transforms": [step], "output": {"path": second}}))
    found = bs.open(second)
    expected = {name: value * (2 if name == "model.layers.0.w" else 1) for name, value in tensors.items()}
    assert {name: np.asarray(found[name]).tobytes() for name in found} == {n: v.tobytes() for n, v in expected.items()}
    listed = {item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="models")["Contents"]}
    assert {key.rpartition("/")[2] for key in listed if "second" in key} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "config.json",
    }  # fmt: skip


def test_an_object_in_the_way_is_kept(bucket: str, model: Path) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket="models", Key="a/notes.txt", Body=b"mine")
    plan = bs.load({"inputs": [f"m::{model}"], "transforms": [], "output": {"path": f"{bucket}/a/", "overwrite": True}})
    with pytest.raises(PlanError, match=r"exists: it holds notes\.txt"):
        bs.run(plan)
    assert client.get_object(Bucket="models", Key="a/notes.txt")["Body"].read() == b"mine"


def test_a_bucket_that_is_not_there_is_an_error_that_names_no_key(bucket: str, model: Path) -> None:
    with pytest.raises((PlanError, StoreError)) as caught:
        bs.run(bs.load({"inputs": [f"m::{model}"], "transforms": [], "output": {"path": "s3://nowhere/a/"}}))
    assert "s3://nowhere/a" in str(caught.value)
    assert "of-the-test" not in str(caught.value)
