"""Bytes of remote files that are kept on this machine on request: read once, never wrong, never in the way."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import Stamp
from brainsurgery_jax.store.remote.cache import CACHE, CachedFile, CachedPlace
from brainsurgery_jax.store.remote.places import RemoteItem
from tests.remote.servers import Served

Model = Mapping[str, np.ndarray]
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(address: str) -> dict[str, np.ndarray]:
    found = bs.open(address)
    try:
        return dict(found)
    finally:
        found.source.close()


def same(found: Model, wanted: Model) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("address", ["hf://org/model", "{}/org/model/"])
def test_what_was_read_once_is_not_fetched_again(server: Served, cache: Path, tensors: Model, address: str):
    address = address.format(server.url)
    assert same(read(address), tensors)
    sent = dict(server.sent)
    assert same(read(address), tensors)
    first = {name: count for name, count in sent.items() if name.endswith(".safetensors")}
    # A look at size and version takes a byte of each file of a web server.
    again = {name: server.sent[name] - count for name, count in first.items()}
    assert all(count <= 1 for count in again.values())


def test_without_the_request_nothing_is_kept(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    read("hf://org/model")
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_a_part_is_kept_and_the_rest_is_fetched_when_it_is_wanted(server: Served, cache: Path, tensors: Model):
    one = "model.layers.2.w"
    assert same(read(f"hf://org/model/{SHARD}::{one.removesuffix('.w')}"), {"w": tensors[one]})
    before = server.sent[SHARD]
    assert same(read("hf://org/model"), tensors)
    of_shard = sum(tensors[f"model.layers.{n}.w"].nbytes for n in range(4))
    assert server.sent[SHARD] - before == of_shard - tensors[one].nbytes


def test_a_file_that_is_another_now_is_read_anew(server: Served, cache: Path, model: Path, tensors: Model):
    address = f"{server.url}/org/model/{SHARD}"
    read(address)
    content = bytearray((model / SHARD).read_bytes())
    content[-4:] = np.float32(7).tobytes()
    (model / SHARD).write_bytes(content)
    assert read(address)["model.layers.3.w"][-1, -1] == 7


@pytest.mark.parametrize("damage", ["flip", "cut", "no bytes", "torn line", "garbage"])
def test_what_is_spoiled_is_fetched_again(server: Served, cache: Path, tensors: Model, damage: str):
    read("hf://org/model")
    for folder in cache.iterdir():
        kept, log = folder / "bytes", folder / "pieces"
        content, lines = bytearray(kept.read_bytes()), log.read_bytes()
        if damage == "flip":
            content[len(content) // 2] ^= 1
            kept.write_bytes(content)
        elif damage == "cut":
            os.truncate(kept, len(content) // 2)
        elif damage == "no bytes":
            kept.unlink()
        elif damage == "torn line":
            log.write_bytes(lines[:-20] + b"0 99999999 00\n")
        else:
            log.write_bytes(b"\xff\xfe no line\n" + lines[::-1])
    assert same(read("hf://org/model"), tensors)


def test_two_readers_share_the_folder_at_the_same_time(server: Served, cache: Path, tensors: Model):
    with ThreadPoolExecutor(4) as pool:
        assert all(same(found, tensors) for found in pool.map(read, ["hf://org/model"] * 4))
    before = server.sent_of_weights
    assert same(read("hf://org/model"), tensors)
    assert server.sent_of_weights == before


def test_a_connection_that_breaks_leaves_what_came_and_the_rest_follows(server: Served, cache: Path, tensors: Model):
    server.break_after = 300_000
    assert same(read("hf://org/model"), tensors)
    server.break_after = None
    before = server.sent_of_weights
    assert same(read("hf://org/model"), tensors)
    assert server.sent_of_weights == before


def test_a_disk_that_takes_nothing_more_is_in_nobodys_way(
    server: Served, cache: Path, tensors: Model, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*given: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brainsurgery_jax.store.remote.cache.os.pwrite", refuse)
    assert same(read("hf://org/model"), tensors)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_variable(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file/cache"))
    with pytest.raises(StoreError, match=CACHE):
        bs.open("hf://org/model")


def test_only_the_user_may_read_what_is_kept(server: Served, cache: Path):
    read("hf://org/model")
    assert {path.stat().st_mode & 0o077 for path in (cache, *cache.rglob("*"))} == {0}


class Text:
    """A place with one file."""

    def __init__(self, content: bytes):
        self.content, self.asked = content, 0

    def list(self) -> Mapping[str, RemoteItem]:
        return {}

    def stamp(self, item: RemoteItem) -> Stamp:
        return item.stamp

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        count = min(len(view), random.Random(offset).randint(1, 40))
        self.asked += count
        view[:count] = self.content[offset : offset + count]
        return count

    def close(self) -> None:
        pass


@pytest.mark.parametrize("version", ["", 'W/"1"'])
def test_a_file_whose_version_tells_too_little_is_not_kept(tmp_path: Path, version: str):
    place = Text(bytes(range(200)))
    cached, item = CachedPlace(place, str(tmp_path / "c")), RemoteItem("u", "u", Stamp(200, version))
    for _ in range(2):
        cached.read_some(item, memoryview(bytearray(10)), 0)
    assert [*(tmp_path / "c").iterdir()] == []


def test_any_ranges_in_any_order_give_the_bytes_of_the_file_and_fetch_none_twice(tmp_path: Path):
    draw = random.Random(0)
    content = draw.randbytes(500)
    place, item = Text(content), RemoteItem("u", "u", Stamp(500, "v"))
    for round_ in range(60):
        cached = CachedPlace(place, str(tmp_path / f"c{round_ // 20}"))
        start, stop = sorted(draw.sample(range(501), 2))
        buffer = memoryview(bytearray(stop - start))
        done = 0
        while done < len(buffer):
            done += cached.read_some(item, buffer[done:], start + done)
        assert bytes(buffer) == content[start:stop]
    assert place.asked <= 3 * 500


def test_a_piece_is_known_to_who_opens_the_file_later(tmp_path: Path):
    CachedFile(str(tmp_path)).keep(memoryview(b"abcdef"), 10)
    view = memoryview(bytearray(10))
    assert CachedFile(str(tmp_path)).read(view, 12) == 4
    assert bytes(view[:4]) == b"cdef"
