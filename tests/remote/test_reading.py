"""Checkpoints on a web server, on a hub and in an object store are read as local ones are, by ranges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.remote.file import PART
from brainsurgery_jax.store.remote.places import CONNECTIONS
from brainsurgery_jax.world import Files
from tests.remote.servers import COMMIT, Served

SHARD = "model-00001-of-00002.safetensors"
Model = Mapping[str, np.ndarray]


def same(found: Mapping[str, np.ndarray], wanted: Model) -> bool:
    return list(found) == list(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_a_folder_and_an_index_of_a_web_server_give_all_tensors(server: Served, tensors: Model, name: str) -> None:
    assert same(bs.open(f"{server.url}/org/model/{name}"), tensors)


def test_a_model_of_the_hub_gives_all_tensors_at_one_commit(server: Served, tensors: Model) -> None:
    assert same(bs.open("hf://org/model"), tensors)
    weights = [path for path, _ in server.asked if path.endswith(".safetensors")]
    assert weights and all(f"/resolve/{COMMIT}/" in path for path in weights)


@pytest.mark.parametrize("revision", ["refs/pr/1", "refs%2Fpr%2F1"])
def test_a_pull_request_of_the_hub_is_a_revision(server: Served, tensors: Model, revision: str) -> None:
    assert same(bs.open(f"hf://org/model@{revision}"), tensors)
    file = f"hf://org/model@{revision}/model.safetensors.index.json"
    assert same(bs.open(file), tensors)


@pytest.mark.parametrize("name", ["org/model", "org/model@v1"])
def test_a_plain_name_is_one_of_the_hub_on_request_where_no_such_folder_is(
    server: Served, tensors: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=f"named 'hf://{name}'"):
        bs.open(name)
    monkeypatch.setenv("BRAINSURGERY_HUB", "1")
    assert same(bs.open(name), tensors)
    plan = bs.load({"inputs": [f"base::{name}"], "transforms": [], "output": {"path": str(tmp_path / "out")}})
    bs.run(plan)
    assert (tmp_path / "out/config.json").is_file()
    monkeypatch.setenv("BRAINSURGERY_HUB", "0")
    with pytest.raises(StoreError, match="does not exist"):
        bs.open(name)


def test_a_folder_goes_before_a_model_of_the_hub_of_the_same_name(
    server: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("BRAINSURGERY_HUB", "1")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "org/model")
    assert not bs.open("org/model").source.header.side_folder
    assert server.asked == []


def test_the_workbench_takes_no_plain_name_for_a_model_of_the_hub(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainsurgery_jax.web.confined import Root

    monkeypatch.setenv("BRAINSURGERY_HUB", "1")
    with pytest.raises(StoreError, match="is a remote place, and this page reads this machine alone"):
        Root(str(tmp_path)).files().open("org/model")
    assert server.asked == []


def test_an_object_store_gives_all_tensors(model: Path, tensors: Model) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(model), "/bucket/model", recursive=True)
    try:
        assert same(bs.open("memory://bucket/model"), tensors)
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_part_and_entries_left_out_are_named_as_in_local_checkpoints(server: Served) -> None:
    assert list(bs.open("hf://org/model::model.layers.3")) == ["w"]


def test_a_lone_shard_is_read_with_a_note_that_names_the_whole(server: Served, tensors: Model) -> None:
    found = bs.open(f"hf://org/model/{SHARD}")
    (note,) = found.notes
    whole = "hf://org/model/model.safetensors.index.json"
    assert f"'{whole}'" in note.hint
    assert same(bs.open(whole), tensors)


def test_opening_reads_headers_and_small_files_alone(server: Served, model: Path) -> None:
    bs.open("hf://org/model")
    headers = sum((model / f"model-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2)) - 8 * (1 << 20)
    assert server.sent_of_weights == headers
    assert "pytorch_model.bin" not in server.sent


def test_one_tensor_is_read_without_the_others(server: Served, tensors: Model) -> None:
    found = bs.open("hf://org/model")
    before = server.sent_of_weights
    assert np.array_equal(found["model.layers.5.w"], tensors["model.layers.5.w"])
    assert server.sent_of_weights - before == tensors["model.layers.5.w"].nbytes


def test_long_reads_are_cut_into_parts(server: Served, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    wide = np.arange(3 << 20, dtype=np.float32)
    save_file({"w": wide}, tmp_path / "served/wide.safetensors")
    found = bs.open(f"{server.url}/wide.safetensors")
    before = len(server.asked)
    assert np.array_equal(found["w"], wide)
    assert len(server.asked) - before == 6  # 12 MiB in parts of 2 MiB


def test_a_plan_keeps_the_side_files_of_a_remote_model(server: Served, tensors: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = bs.load({
        "inputs": ["base::hf://org/model"],
        "transforms": [{"scale_": {"target": "model.layers.0.w", "by": 2.0}}],
        "output": {"path": str(out)},
    })  # fmt: skip
    bs.run(plan)
    assert same(bs.open(str(out)), dict(tensors) | {"model.layers.0.w": tensors["model.layers.0.w"] * 2})
    names = ["brainsurgery.lock.json", "config.json", "tokenizer.json"]
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".json") == names
    assert (out / "config.json").read_bytes() == (tmp_path / "served/org/model/config.json").read_bytes()


def test_two_remote_models_are_compared_with_their_side_files(server: Served, model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "served/org/other")
    (tmp_path / "served/org/other/config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": 8}')
    found = bs.diff("hf://org/model", "hf://org/other")
    assert found.side_files == {"config.json: model_type": ('"llama"', '"qwen2"')}


def test_an_adapter_of_the_hub_is_read_with_its_config(server: Served, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "served/org/adapter"
    folder.mkdir()
    name = "base_model.model.q_proj.lora_A.weight"
    save_file({name: np.ones((2, 4), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    found = bs.open("hf://org/adapter")
    assert same(found, {name: np.ones((2, 4), np.float32)})
    assert "lora_alpha" in found.metadata["peft.adapter_config"]


def test_the_folder_of_side_files_goes_when_the_checkpoint_is_closed(server: Served) -> None:
    source = bs.open("hf://org/model").source
    folder = Path(source.header.side_folder)
    assert (folder / "config.json").is_file()
    source.close()
    assert not folder.exists()


def test_more_long_side_files_than_connections_are_fetched(server: Served, model: Path) -> None:
    for number in range(2 * CONNECTIONS):
        (model / f"tokenizer_{number}.json").write_bytes(b" " * (PART + 1))
    files = Files()
    found = files.side_files("hf://org/model")
    assert found is not None
    found.bring(found.copied)
    assert Path(found.folder, "tokenizer_31.json").read_bytes() == b" " * (PART + 1)
    files.close()


def fetched(server: Served, name: str) -> int:
    """How often a file was asked for, its size apart."""
    return sum(path.endswith(f"/{name}") for path, _ in server.asked)


@pytest.mark.parametrize("way", ["open", "check", "one file", "other tokenizer"])
def test_a_tokenizer_that_nobody_needs_is_not_fetched(server: Served, tmp_path: Path, way: str) -> None:
    out = {"check": "out", "one file": "out.safetensors", "other tokenizer": "out"}.get(way, "")
    plan = bs.load({
        "inputs": ["base::hf://org/model"],
        "transforms": [{"scale_": {"target": "model.layers.0.w", "by": 2.0}}],
        "output": {"path": str(tmp_path / out), "sidecars": way != "other tokenizer"},
    })  # fmt: skip
    bs.open("hf://org/model").source.close() if way == "open" else bs.check(plan) if way == "check" else bs.run(plan)
    assert fetched(server, "config.json") > 0
    assert fetched(server, "tokenizer.json") == 0


def test_a_tokenizer_is_fetched_once_for_two_outputs_that_get_it(server: Served, tmp_path: Path) -> None:
    outputs = [{"path": str(tmp_path / name), "alias": "base"} for name in ("one", "two")]
    bs.run(bs.load({"inputs": ["base::hf://org/model"], "transforms": [], "outputs": outputs}))
    assert fetched(server, "tokenizer.json") == 1
    assert [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")] == [
        (tmp_path / "served/org/model/tokenizer.json").read_bytes()
    ] * 2


# --- Faults of the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [20_000, 300_000])
def test_a_broken_connection_is_resumed_where_it_stopped(server: Served, tensors: Model, nbytes: int) -> None:
    found = bs.open("hf://org/model")
    server.break_after = nbytes
    assert np.array_equal(found["model.layers.0.w"], tensors["model.layers.0.w"])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server: Served, tensors: Model, status: int) -> None:
    found = bs.open("hf://org/model")
    server.failures = [status] * 4
    assert np.array_equal(found["model.layers.0.w"], tensors["model.layers.0.w"])


def test_a_server_that_stays_busy_is_an_error_that_names_file_and_tensor(server: Served) -> None:
    found = bs.open("hf://org/model")
    server.failures = [503] * 5
    with pytest.raises(StoreError, match=r"00001-of-00002.*'model.layers.0.w'.* 5 tries: the server answered 503"):
        found["model.layers.0.w"]


def test_a_server_without_ranges_is_refused_before_it_sends_the_file(server: Served) -> None:
    server.ranges = False
    with pytest.raises(StoreError, match="does not serve parts of files"):
        bs.open(f"{server.url}/org/model/{SHARD}")


def test_a_file_that_changes_under_way_is_noticed(server: Served, model: Path) -> None:
    found = bs.open(f"{server.url}/org/model/{SHARD}")
    content = bytearray((model / SHARD).read_bytes())
    content[-1] ^= 1
    (model / SHARD).write_bytes(content)
    with pytest.raises(StoreError, match="changed while running"):
        found.source.verify_unchanged()


def test_a_file_that_is_cut_under_way_is_noticed_when_it_is_read(server: Served, model: Path) -> None:
    found = bs.open(f"{server.url}/org/model/{SHARD}")
    (model / SHARD).write_bytes((model / SHARD).read_bytes()[:-4])
    with pytest.raises(StoreError, match="changed while running"):
        found["model.layers.0.w"]


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("hf://org/nothing", "no such model"),
        ("hf://org/model@v9", "no revision 'v9'"),
        ("hf://org/model/nothing", "the repository has no 'nothing'"),
        ("hf://model", "names no model of the hub"),
        ("hf://org/model@", "names no model of the hub"),
        ("foo://a/b", "'foo' is no scheme"),
        ("memory://nothing/here", "nothing at this address"),
    ],
)
def test_an_address_that_leads_nowhere_is_an_error_that_says_why(server: Served, address: str, problem: str) -> None:
    with pytest.raises(StoreError, match=problem):
        bs.open(address)


def test_a_signature_in_an_address_is_in_no_error_and_no_name(server: Served, tensors: Model) -> None:
    found = bs.open(f"{server.url}/org/model/{SHARD}?signature=secret")
    assert len(found) == 4
    assert "secret" not in repr(found) + str(found.source.header) + str(found.notes)
    with pytest.raises(StoreError) as caught:
        bs.open(f"{server.url}/org/nothing.safetensors?signature=secret")
    assert "secret" not in str(caught.value)


def test_the_token_of_the_hub_goes_to_the_hub_alone(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.remote.servers import serve

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(tmp_path / "served") as elsewhere:
        server.redirect_to = elsewhere.url.replace("127.0.0.1", "localhost")
        assert len(bs.open("hf://org/model")) == 8
        assert all(token == "Bearer hf_secret" for path, token in server.asked if "/resolve/" in path)
        assert elsewhere.asked and not any(token for _, token in elsewhere.asked)


def test_a_folder_without_safetensors_is_refused_with_what_it_holds(server: Served, tmp_path: Path) -> None:
    (tmp_path / "served/org/torch").mkdir()
    (tmp_path / "served/org/torch/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"no safetensors file at its top: pytorch_model\.bin"):
        bs.open("hf://org/torch")


def test_names_that_lead_out_of_the_folder_are_refused(server: Served, model: Path) -> None:
    from brainsurgery_jax.store.io.files import Stamp
    from brainsurgery_jax.store.remote.places import RemoteItem
    from brainsurgery_jax.store.remote.source import RemoteSource

    class Hostile:
        def list(self) -> Mapping[str, RemoteItem]:
            return {"../evil.safetensors": RemoteItem("x", "place/../evil.safetensors", Stamp(8, ""))}

        def stamp(self, item: RemoteItem) -> Stamp:
            return item.stamp

        def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
            return 0

        def close(self) -> None:
            pass

    with pytest.raises(StoreError, match="leads out of its folder"):
        RemoteSource("place", Hostile())
