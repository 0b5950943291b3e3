"""A whole run from and to a place that is no file system: the engine needs no path and no descriptor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.api import load, run
from brainsurgery_jax.engine.events import Event, Started
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store.io.files import CHUNK
from brainsurgery_jax.store.safetensors.source import SafetensorsSource
from brainsurgery_jax.world import Files
from tests.checkpoints import counting, normal, write
from tests.store.in_memory_place import MARKER, Bucket, BucketPlace, ByMarker

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PT = {"format": "pt"}
STEPS = [
    {"move": {"from": "a", "to": "renamed"}},
    {"scale_": {"target": "b", "by": 2}},
    {"copy": {"from": "c::[1:3]", "to": "rows"}},
    {"permute": {"from": "c", "to": "turned", "order": [1, 0]}},
    {"assert": {"not": {"iszero": "b"}}},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / SHARDS[0], {"a": normal((4, 6)), "b": normal((5, 3))}, PT)
    write(folder / SHARDS[1], {"c": counting((6, 4), np.int32), "kept": normal((7,))}, PT)
    return folder


class InBucketWorld(Files):
    """A world whose outputs go to a bucket."""

    def __init__(self, bucket: Bucket, source: SafetensorsSource):
        super().__init__(sources={os.path.realpath(source.header.path): source})
        self.commit = ByMarker(bucket)

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> None:
        pass

    def provisional_twin(self) -> Files:
        return self


def uploaded(model: Path, bucket: Bucket) -> SafetensorsSource:
    """The model as it is read from a bucket; on disk there is nothing left of it."""
    place = BucketPlace(bucket, "in")
    for name in SHARDS:
        place.write(name, (model / name).read_bytes())
        (model / name).unlink()
    return SafetensorsSource(str(model), [place.open(name) for name in place.list()])


def run_in_bucket(model: Path, steps: list[Any], bucket: Bucket, **how: Any) -> dict[str, bytes]:
    world = InBucketWorld(bucket, uploaded(model, bucket))
    plan = {"inputs": [str(model)], "transforms": steps, "output": {"path": "out/", "shard": "200B"}}
    run(load(plan), world=world, **how)
    (out,) = {key.rpartition("/")[0] for key in bucket.objects if key.endswith(MARKER)}
    return {name: bytes(bucket.objects[f"{out}/{name}"]) for name in BucketPlace(bucket, out).list()}


@pytest.mark.parametrize("steps", [[], STEPS], ids=["nothing changes", "tensors move and are computed"])
def test_a_run_from_bucket_to_bucket_writes_the_bytes_of_one_from_disk_to_disk(
    model: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    output = {"path": "disk/", "shard": "200B"}
    bs.load({"inputs": [str(model)], "transforms": steps, "output": output}).run(durable=False, lock=False)
    disk = {path.name: path.read_bytes() for path in (model.parent / "disk").iterdir()}
    assert run_in_bucket(model, steps, Bucket()) == disk | {MARKER: b""}
    assert sorted(os.listdir(model.parent)) == ["disk", "model"]
    assert os.listdir(model) == []


def test_what_stays_as_it_is_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    bucket = Bucket()
    sizes = sum((model / name).stat().st_size for name in SHARDS)
    run_in_bucket(model, [], bucket)
    headers = sum(int.from_bytes(bucket.objects[f"in/{name}"][:8], "little") + 8 for name in SHARDS)
    assert bucket.bytes_read == sizes + headers  # headers once more: files that stay take them over
    assert sizes <= CHUNK


def test_a_failed_check_publishes_nothing_and_removes_what_was_written(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    bucket = Bucket()
    with pytest.raises(PlanError, match="iszero"):
        run_in_bucket(model, [{"assert": {"iszero": "b"}}], bucket)
    assert sorted(bucket.objects) == [f"in/{name}" for name in SHARDS]


def test_an_object_that_is_replaced_during_the_run_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    bucket = Bucket()

    def meddle(event: Event) -> None:
        if isinstance(event, Started):
            bucket.put(f"in/{SHARDS[0]}", bytearray(bucket.objects[f"in/{SHARDS[0]}"]))

    with pytest.raises(StoreError, match=rf"in/{SHARDS[0]}: changed while running"):
        run_in_bucket(model, STEPS, bucket, listen=meddle)
    assert sorted(bucket.objects) == [f"in/{name}" for name in SHARDS]


@pytest.mark.parametrize("format", ["orbax", "dcp"])
def test_a_format_whose_library_wants_a_path_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.chdir(model.parent)
    bucket = Bucket()
    world = InBucketWorld(bucket, uploaded(model, bucket))
    plan = {"inputs": [str(model)], "output": {"path": "out/", "format": format}}
    with pytest.raises(StoreError, match="is written to local files only"):
        run(load(plan), world=world)


@pytest.mark.parametrize(
    ("path", "format"), [("out/", "torch"), ("out.npz", "npz"), ("out.pt", "torch"), ("out.msgpack", "flax")]
)
def test_a_format_that_is_written_as_a_stream_goes_to_any_place(
    model: Path, monkeypatch: pytest.MonkeyPatch, path: str, format: str
) -> None:
    monkeypatch.chdir(model.parent)
    plan = {"inputs": [str(model)], "transforms": STEPS, "output": {"path": path, "format": format}}
    bs.load(plan).run(durable=False, lock=False)
    place = model.parent / path
    disk = {file.name: file.read_bytes() for file in (place.iterdir() if place.is_dir() else [place])}
    bucket = Bucket()
    run(load(plan), world=InBucketWorld(bucket, uploaded(model, bucket)))
    found = {key.rpartition("/")[2]: bytes(content) for key, content in bucket.objects.items() if "out" in key}
    assert {name: content for name, content in found.items() if name in disk} == disk
