"""Locks: what is in them, that they repeat, and what is done with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import brainsurgery_jax as bs
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, read, write
from tests.cli.conftest import environment

PIECE = 1 << 20
STEPS = [
    {"scale_": {"target": "s.*", "by": 3}},
    {"permute": {"from": "t", "to": "p", "order": [1, 0]}},
    {"move": {"from": "old", "to": "new"}},
    {"copy": {"from": "new", "to": "twin"}},
    {"compute": {"from": {"a": "s0", "b": "s1"}, "expr": "a + b", "to": "sum"}},
]
FORMATS = {"safetensors": "out/", "torch": "out.pt", "orbax": "orbax/", "npz": "out.npz", "flax": "out.msgpack"}


@pytest.fixture(autouse=True)
def world(here: Path) -> None:
    (here / "in").mkdir()
    tensors = {f"s{i}": normal((40, 50), seed=i) for i in range(3)}
    long = np.arange(PIECE + 100, dtype=np.int32)
    write("in/model.safetensors", tensors | {"t": normal((70, 30)), "old": long})
    Path("in/config.json").write_text('{"a": 1}')


def plan(path: str = "out/", **more: Any) -> bs.Plan:
    output = {"path": path, "alias": "base", "overwrite": True, **({"format": "orbax"} if path == "orbax/" else {})}
    return bs.load({"inputs": ["base::in"], "transforms": STEPS, "output": output, **more})


def lock_of(path: str) -> dict[str, Any]:
    place = f"{path}brainsurgery.lock.json" if path.endswith("/") else f"{path}.lock.json"
    return json.loads(Path(place).read_text())


def oracle(array: np.ndarray) -> str:
    """The digest that docs/provenance.md defines."""
    raw, size = array.tobytes(), PIECE * array.itemsize
    pieces = (xxhash.xxh3_128(raw[at : at + size]).digest() for at in range(0, len(raw), size))
    return xxhash.xxh3_128(b"".join(pieces)).hexdigest() if raw else ""


def change(path: str, name: str, edit: Any = lambda x: x + 1) -> None:
    """Edit a tensor of a safetensors file."""
    write(path, {n: edit(a) if n == name else a for n, a in read(path).items()})


# --- What it holds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_tensor_has_the_digest_of_its_bytes_in_every_format(kind: str):
    path = FORMATS[kind]
    plan(path).run(lock=True)
    found = lock_of(path)["output"]["tensors"]
    made = bs.open(path)
    assert {n: t.get("digest") for n, t in found.items()} == {n: oracle(np.asarray(made[n])) for n in made}
    assert bs.verify(path).ok


def test_a_tensor_without_elements_has_an_empty_digest():
    write("in/model.safetensors", {"none": np.zeros((0, 3), np.float32)})
    plan(transforms=[]).run(lock=True)
    assert lock_of("out/")["output"]["tensors"]["none"] == {"aval": "f32[0,3]", "digest": "", "inputs": ["base::none"]}
    assert bs.verify("out").ok


def test_inputs_have_digests_of_what_reaches_the_output():
    unused = plan(transforms=[*STEPS, {"delete": {"target": "s2"}}])
    unused.run(lock=True)
    found = lock_of("out/")["inputs"]["base"]["tensors"]
    wanted = {name: oracle(array) for name, array in read("in/model.safetensors").items()}
    assert {n: t["digest"] for n, t in found.items() if "digest" in t} == {n: d for n, d in wanted.items() if n != "s2"}
    assert found["s2"] == {"aval": "f32[40,50]"}


def test_tensors_that_are_read_in_whole_pieces_are_read_once():
    world = Files(overwrite=True)
    streamed = plan(transforms=[STEPS[0], {"cast_": {"target": "old", "to": "int64"}}, {"delete": {"target": "t"}}])
    streamed.run(world=world, lock=True)
    tensors = read("in/model.safetensors")
    assert world.bytes_read == sum(a.nbytes for n, a in tensors.items() if n in ("s0", "s1", "s2", "old"))


def test_a_lock_is_the_same_whatever_budget_threads_and_hash_seed():
    plan().run(lock=True)
    first = Path("out/brainsurgery.lock.json").read_bytes()
    line = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import brainsurgery_jax as bs; "
    line += "from tests.provenance.test_lock import plan; plan().run(lock=True, memory=int(sys.argv[1]))"
    for seed, memory in (("1", "100000000"), ("77", "900000000")):
        more = {**environment(), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", line, memory], env=more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path("out/brainsurgery.lock.json").read_bytes() == first


def test_a_lock_is_the_same_wherever_its_folder_is(here: Path, monkeypatch: pytest.MonkeyPatch):
    plan().run(lock=True)
    first = Path("out/brainsurgery.lock.json").read_bytes()
    (here / "else").mkdir()
    shutil.copytree("in", "else/in")
    monkeypatch.chdir(here / "else")
    absolute = bs.load({"inputs": [f"base::{here}/else/in"], "transforms": STEPS,
                        "output": {"path": f"{here}/else/out/", "alias": "base", "overwrite": True}})  # fmt: skip
    absolute.run(lock=True)
    assert Path("out/brainsurgery.lock.json").read_bytes() == first


def test_values_of_the_environment_never_get_into_a_lock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN", "hf_secret")
    monkeypatch.setenv("FOLDER", "in")
    metadata = {"k": "${env.TOKEN}"}
    saved = {"save": {"path": "x.safetensors", "metadata": metadata}}
    output = {"path": "out/", "metadata": metadata}
    hidden = bs.load({"inputs": ["base::${env.FOLDER}"], "transforms": [saved], "output": output})
    hidden.run(lock=True)
    text = Path("out/brainsurgery.lock.json").read_text() + Path("x.safetensors.lock.json").read_text()
    assert "hf_secret" not in text and "${env.TOKEN}" in text


def test_metadata_and_training_arguments_of_inputs_never_get_into_a_lock():
    write("in/model.safetensors", {"w": normal((2, 2))}, metadata={"args": "lr=secret"})
    bs.load({"inputs": ["base::in"], "transforms": [{"scale_": {"target": "w", "by": 2}}], "output": "out/"}).run(
        lock=True
    )
    assert "secret" not in Path("out/brainsurgery.lock.json").read_text()


def test_paths_elsewhere_on_the_machine_keep_their_names_only(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(here / "home" / "me"))
    (here / "home" / "me" / "models").mkdir(parents=True)
    shutil.move("in", here / "home" / "me" / "models" / "in")
    plan(inputs=["base::~/models/in"]).run(lock=True)
    assert "home/me" not in Path("out/brainsurgery.lock.json").read_text()
    assert lock_of("out/")["inputs"]["base"]["path"] == "in"


def test_side_files_have_their_sha256_and_files_of_weights_on_demand():
    plan().run(lock=True)
    files = lock_of("out/")["output"]["files"]
    assert len(files["config.json"]["sha256"]) == 64 and "sha256" not in files["model.safetensors"]
    plan().run(lock=True, sha256=True)
    assert len(lock_of("out/")["output"]["files"]["model.safetensors"]["sha256"]) == 64


def test_a_lock_does_not_replace_what_is_no_lock():
    Path("out.npz.lock.json").write_text("{}")
    with pytest.raises(bs.StoreError, match="is no lock, and a lock replaces nothing else"):
        bs.load({"inputs": ["base::in"], "transforms": STEPS, "output": "out.npz"}).run(lock=True)
    assert not os.path.exists("out.npz")


def test_the_lock_of_an_input_does_not_travel():
    plan().run(lock=True)
    again = bs.load({"inputs": ["out"], "output": "again/"})
    again.run(lock=False)
    assert not os.path.exists("again/brainsurgery.lock.json")
    again.run(overwrite=True)
    assert [read["path"] for read in lock_of("again/")["inputs"].values()] == ["../out"]


# --- Verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda: change("out/model.safetensors", "s1"), "tensor 's1' (f32[40,50]) has other elements"),
        (
            lambda: change("out/model.safetensors", "s1", lambda x: x[:2]),
            "tensor 's1' is f32[2,50], and was f32[40,50]",
        ),
        (lambda: Path("out/config.json").write_text('{"a": 2}'), "file 'config.json' has another SHA-256"),
        (lambda: os.remove("out/config.json"), "file 'config.json' is missing"),
    ],
)
def test_verify_names_what_differs(damage: Any, told: str):
    plan().run(lock=True)
    damage()
    found = bs.verify("out/")
    assert not found.ok and told in found.differences


def test_verify_names_tensors_that_are_gone_or_new():
    plan("out.safetensors").run(lock=True)
    tensors = read("out.safetensors")
    write("out.safetensors", {"extra": tensors.pop("s0"), **tensors})
    told = "; ".join(bs.verify("out.safetensors").differences)
    assert "tensor 's0' (f32[40,50]) is missing" in told and "tensor 'extra' (f32[40,50]) is new" in told


def test_verify_compares_inputs_on_demand():
    plan().run(lock=True)
    change("in/model.safetensors", "s2")
    assert bs.verify("out/").ok
    assert bs.verify("out/", inputs=True).differences == ("input 'base': tensor 's2' (f32[40,50]) has other elements",)


def test_an_output_can_be_moved_with_its_lock():
    plan().run(lock=True)
    shutil.move("out", "moved")
    assert bs.verify("moved").ok and bs.verify("moved/brainsurgery.lock.json").ok


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "brainsurgery-jax lock"}', "{" * 100_000])
def test_what_is_no_lock_is_refused(text: str):
    Path("x.json").write_text(text)
    with pytest.raises(bs.StoreError, match="is no lock that this version reads"):
        bs.verify("x.json")


def test_an_output_without_a_lock_is_refused_with_what_to_do():
    with pytest.raises(bs.StoreError, match=r"has no lock: .*\n    Write one with the output: .*--lock"):
        bs.verify("in")


# --- Locked runs and replays ------------------------------------------------------------------------------------------


def test_a_locked_run_of_the_same_plan_publishes():
    plan().run(lock=True)
    shutil.rmtree("other", ignore_errors=True)
    assert plan("other/").run(locked="out/").published[0][0] == "other/"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda: change("in/model.safetensors", "s1", lambda x: x[:2]), "input 'base': tensor 's1' is f32"),
        (lambda: None, "numpy is .*, and was 1.0"),
    ],
)
def test_what_headers_and_versions_tell_is_refused_before_anything_is_read(edit: Any, told: str):
    plan().run(lock=True)
    lock = lock_of("out/")
    if "numpy" in told:
        lock["versions"]["numpy"] = "1.0"
    Path("lock.json").write_text(json.dumps(lock))
    edit()
    world, steps = Files(overwrite=True), [STEPS[0]]
    steps = STEPS[:4] if "input" in told else STEPS
    lock["plan"]["transforms"] = steps
    Path("lock.json").write_text(json.dumps(lock))
    with pytest.raises(bs.PlanError, match=told):
        plan(transforms=steps).run(world=world, locked="lock.json")
    assert world.bytes_read == 0


def test_another_plan_is_refused():
    plan().run(lock=True)
    with pytest.raises(bs.PlanError, match="the plan differs from step 2 on"):
        plan(transforms=[STEPS[0], *STEPS[2:]]).run(locked="out/")


def test_other_elements_are_refused_before_anything_is_published():
    plan().run(lock=True)
    was = Path("out/model.safetensors").read_bytes()
    change("in/model.safetensors", "s1")
    with pytest.raises(bs.PlanError, match=r"input 'base': tensor 's1' .* has other elements.*output: tensor 's1'"):
        plan().run(locked="out/")
    assert Path("out/model.safetensors").read_bytes() == was


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_replay_makes_the_output_again_and_leaves_nothing(kind: str):
    plan(FORMATS[kind]).run(lock=True)
    before = sorted(os.listdir())
    assert bs.replay(FORMATS[kind]).ok
    assert sorted(os.listdir()) == before


def test_a_replay_can_be_kept_with_its_lock():
    plan().run(lock=True)
    assert bs.replay("out", to="again/").ok
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    assert bs.verify("again").ok


def test_a_replay_tells_what_differs():
    plan().run(lock=True)
    change("in/model.safetensors", "t")
    found = bs.replay("out")
    assert any("tensor 'p'" in text for text in found.differences)


def test_a_replay_takes_inputs_from_elsewhere():
    plan().run(lock=True)
    shutil.move("in", "moved")
    with pytest.raises(bs.PlanError, match="does not exist"):
        bs.replay("out")
    assert bs.replay("out", inputs={"base": "moved"}).ok


SEVERAL = {
    "two outputs": {"transforms": STEPS[:1], "outputs": ["a/", "b.npz"]},
    "a step that saves": {"transforms": [{"save": "a"}, *STEPS[:1]], "output": "b.npz"},
    "what was saved is loaded": {
        "transforms": [
            {"save": "a"},
            {"load": {"path": "a", "alias": "l"}},
            {"copy": {"from": "l::s0", "to": "base::more"}},
        ],
        "output": {"path": "b.npz", "alias": "base"},
    },
}


@pytest.mark.parametrize("name", list(SEVERAL))
def test_each_of_several_outputs_is_made_again(name: str):
    bs.load({"inputs": ["base::in"], **SEVERAL[name]}).run(lock=True)
    before = sorted(os.listdir())
    assert bs.replay("a").ok and bs.replay("b.npz").ok
    assert sorted(os.listdir()) == before
    assert bs.replay("b.npz", to="c.npz").ok and Path("c.npz").read_bytes() == Path("b.npz").read_bytes()


def test_several_outputs_must_agree_with_a_lock_each():
    several = {"inputs": ["base::in"], **SEVERAL["a step that saves"]}
    bs.load(several).run(lock=True)
    told = r"the plan also writes b.npz, and none of the locks is of it.*\n.*`locked=\[...\]` with one for each output"
    with pytest.raises(bs.PlanError, match=told):
        bs.load(several).run(locked="a", overwrite=True)
    with pytest.raises(bs.PlanError, match=r"it is of output 1, which is that of a of this run"):
        bs.load(several).run(locked=["a", "a/brainsurgery.lock.json"], overwrite=True)
    assert len(bs.load(several).run(locked=["b.npz", "a"], overwrite=True).published) == 2


def test_a_run_of_several_outputs_names_the_lock_that_differs():
    several = {"inputs": ["base::in"], **SEVERAL["two outputs"]}
    bs.load(several).run(lock=True)
    lock = lock_of("b.npz")
    lock["output"]["tensors"]["s1"]["digest"] = "0" * 32
    Path("b.npz.lock.json").write_text(json.dumps(lock))
    with pytest.raises(bs.PlanError, match=r"b.npz: output: tensor 's1' .* has other elements"):
        bs.load(several).run(locked=["a", "b.npz"], overwrite=True)


def test_a_replay_loads_what_the_plan_loads():
    write("tuned.safetensors", {"w": normal((3, 3))})
    loads = [{"load": {"path": "tuned.safetensors", "alias": "tuned"}}, {"copy": {"from": "tuned::w", "to": "base::w"}}]
    plan("sub/out/", transforms=loads).run(lock=True)
    assert bs.replay("sub/out").ok and bs.verify("sub/out", inputs=True).ok


# --- Blame ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inputs", "steps"),
    [
        ("s2", ("base::s2",), (0,)),
        ("p", ("base::t",), (1,)),
        ("t", ("base::t",), ()),
        ("new", ("base::old",), (2,)),
        ("twin", ("base::old",), (2, 3)),
        ("sum", ("base::s0", "base::s1"), (0, 4)),
    ],
)
def test_blame_names_the_inputs_and_steps_that_made_a_tensor(
    name: str, inputs: tuple[str, ...], steps: tuple[int, ...]
):
    plan().run(lock=True)
    shutil.rmtree("in")
    found = bs.blame("out", name)
    assert (found.inputs, tuple(number for number, _ in found.steps)) == (inputs, steps)
    assert [step for _, step in found.steps] == [STEPS[n] for n in steps]


def test_blame_of_a_name_that_is_not_there_suggests_one():
    plan().run(lock=True)
    with pytest.raises(bs.PlanError, match=r"no tensor is called 'twni' .* Did you mean 'twin'"):
        bs.blame("out", "twni")


def test_the_remedies_of_locks_work():
    with pytest.raises(bs.StoreError, match="Write one with the output"):
        bs.blame("in", "s0")
    plan().run(lock=True)
    with pytest.raises(bs.StoreError, match="Name a lock file, or an output that was written with `--lock`"):
        bs.verify("in/config.json")
    assert bs.verify("out").ok and bs.verify("out/brainsurgery.lock.json").ok
    other = plan("second/", transforms=STEPS[:1])
    with pytest.raises(bs.PlanError, match="Go back to what the lock names, or run without `locked=`"):
        other.run(locked="out")
    assert other.run().published and plan("third/").run(locked="out").published
