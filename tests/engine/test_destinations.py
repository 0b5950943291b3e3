"""Every kind of thing that may stand where an output goes, with and without `overwrite`: nothing is destroyed but a
checkpoint that the user lets go, `check` says what `run` would say, and sources stay as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store import leftovers, replacing
from brainsurgery_jax.store.replacing import ProtectedPlaces, Reads, check_destination, replacement
from brainsurgery_jax.store.runs import this_run
from tests.checkpoints import write

EXISTS, KIND, PLACE, FOREIGN, INPUT = (
    "io-output", "io-output-kind", "io-output-place", "io-output-foreign", "io-output-input",
)  # fmt: skip
FINE = ""


class Case(NamedTuple):
    """A destination, the inputs beside `source/`, and the code without and with `overwrite` (FINE: none)."""

    destination: str
    codes: tuple[str, str]
    inputs: tuple[str, ...] = ("source",)


Maker = Callable[[Path], Case]


def weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, {"w": np.full(3, 7, np.float32)})


def model(folder: Path) -> Path:
    """A folder with a model in one file."""
    weights(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def put(path: Path, text: str = "precious") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- The table --------------------------------------------------------------------------------------------------------


def nothing(root: Path) -> Case:
    return Case("new/", (FINE, FINE))


def nothing_behind_a_link(root: Path) -> Case:
    (root / "link").symlink_to("new")
    return Case("link", (FINE, FINE))


def a_file(root: Path) -> Case:
    weights(root / "out.safetensors")
    return Case("out.safetensors", (EXISTS, FINE))


def a_link_to_a_file(root: Path) -> Case:
    weights(root / "disk.safetensors")
    (root / "out.safetensors").symlink_to("disk.safetensors")
    return Case("out.safetensors", (EXISTS, FINE))


def a_file_where_a_folder_should_go(root: Path) -> Case:
    put(root / "thesis")
    return Case("thesis/", (KIND, KIND))


def an_empty_folder(root: Path) -> Case:
    (root / "out").mkdir()
    return Case("out", (FINE, FINE))


def a_folder_of_one_file(root: Path) -> Case:
    model(root / "out")
    return Case("out", (EXISTS, FINE))


def a_link_to_a_folder(root: Path) -> Case:
    model(root / "disk")
    (root / "out").symlink_to("disk")
    return Case("out", (EXISTS, FINE))


def a_folder_of_shards_with_stale_ones(root: Path) -> Case:
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin",
                 "model-00003-of-00003.safetensors", "flax_model.msgpack", "model.fp16.safetensors"):  # fmt: skip
        put(root / "out" / name)
    put(root / "out" / "model.safetensors.index.json", "{}")
    return Case("out", (EXISTS, FINE))


def a_folder_of_shards_by_other_names(root: Path) -> Case:
    put(
        root / "out" / "model.safetensors.index.json",
        '{"weight_map": {"w": "part_one.safetensors", "v": "sub/two.safetensors"}}',
    )
    put(root / "out" / "part_one.safetensors")
    put(root / "out" / "sub" / "two.safetensors")
    return Case("out", (EXISTS, FINE))


def a_folder_of_one_file_by_another_name(root: Path) -> Case:
    put(root / "out" / "lora.safetensors")
    return Case("out", (EXISTS, FINE))


def a_collection_of_models(root: Path) -> Case:
    put(root / "loras" / "cat.safetensors")
    put(root / "loras" / "dog.safetensors")
    return Case("loras/", (FOREIGN, FOREIGN))


def a_checkpoint_with_an_unrelated_one_beside(root: Path) -> Case:
    put(model(root / "out") / "ema.safetensors")
    return Case("out", (FOREIGN, FOREIGN))


def what_a_trainer_resumes_from(root: Path) -> Case:
    put(model(root / "out") / "optimizer.pt")
    return Case("out", (FOREIGN, FOREIGN))


def a_sentence_transformer(root: Path) -> Case:
    put(model(root / "out") / "modules.json", '[{"path": "1_Pooling"}]')
    put(root / "out" / "1_Pooling" / "config.json", "{}")
    return Case("out", (EXISTS, FINE))


def a_folder_of_a_side_file_with_more_in_it(root: Path) -> Case:
    a_sentence_transformer(root)
    put(root / "out" / "1_Pooling" / "notes.txt")
    return Case("out", (FOREIGN, FOREIGN))


def a_model_with_code_that_its_config_names(root: Path) -> Case:
    put(model(root / "out") / "config.json", '{"auto_map": {"AutoModel": "modeling_x.X"}}')
    put(root / "out" / "modeling_x.py")
    return Case("out", (EXISTS, FINE))


def saved(format: str, **options: str) -> Maker:
    def make(root: Path) -> Case:
        bs.save(str(root / "out/"), {"a": {"w": np.ones((2, 3), np.float32)}}, format=format, options=options)
        return Case("out", (EXISTS, FINE))

    make.__name__ = "_".join(["a_folder_of", format, *options.values()])
    return make


def orbax_without_a_store(root: Path) -> Case:
    for name in ("_METADATA", "commit_success.txt", "a.w/.zarray", "a.w/0.0", "b/zarr.json", "b/c/0/0"):
        put(root / "out" / name, "{}")
    return Case("out", (EXISTS, FINE))


def orbax_with_notes_inside(root: Path) -> Case:
    orbax_without_a_store(root)
    put(root / "out" / "notes" / "today.txt")
    return Case("out", (FOREIGN, FOREIGN))


def orbax_with_another_item(root: Path) -> Case:
    for name in ("_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "state/d/12ab", "data/metadata"):
        put(root / "out" / name, "{}")
    return Case("out", (FOREIGN, FOREIGN))


def steps_of_orbax(root: Path) -> Case:
    for name in ("1/_CHECKPOINT_METADATA", "1/state/_METADATA", "2/_CHECKPOINT_METADATA", "2/state/_METADATA"):
        put(root / "out" / name, "{}")
    return Case("out", (FOREIGN, FOREIGN))


def a_clone_of_a_repository(root: Path) -> Case:
    put(model(root / "repo") / ".git" / "HEAD")
    put(root / "repo" / ".gitattributes")
    return Case("repo", (FOREIGN, FOREIGN))


def a_model_beside_its_source_code(root: Path) -> Case:
    put(model(root / "repo") / "src" / "train.py")
    return Case("repo", (FOREIGN, FOREIGN))


def a_model_beside_notes(root: Path) -> Case:
    put(model(root / "repo") / "notes.txt")
    return Case("repo", (FOREIGN, FOREIGN))


def a_model_beside_a_link_to_a_folder(root: Path) -> Case:
    put(root / "data" / "x.txt")
    (model(root / "repo") / "1_Pooling").symlink_to("../data")
    return Case("repo", (FOREIGN, FOREIGN))


def a_folder_without_a_checkpoint(root: Path) -> Case:
    put(root / "thesis" / "chapter.tex")
    return Case("thesis/", (FOREIGN, FOREIGN))


def documents_and_a_config_alone(root: Path) -> Case:
    put(root / "project" / "README.md")
    put(root / "project" / "config.json", "{}")
    return Case("project/", (FOREIGN, FOREIGN))


def a_fifo(root: Path) -> Case:
    os.mkfifo(root / "out.safetensors")
    return Case("out.safetensors", (KIND, KIND))


def a_fifo_where_a_folder_should_go(root: Path) -> Case:
    os.mkfifo(root / "out")
    return Case("out", (KIND, KIND))


def a_link_to_a_fifo(root: Path) -> Case:
    os.mkfifo(root / "fifo")
    (root / "out.safetensors").symlink_to("fifo")
    return Case("out.safetensors", (KIND, KIND))


def a_socket(root: Path) -> Case:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(root)  # the name of a socket must be short
        try:
            listening.bind("out.npz")
        finally:
            os.chdir(here)
    return Case("out.npz", (KIND, KIND))


def a_device(root: Path) -> Case:
    """A node of our own; where we may not make one, a FIFO, which is refused alike."""
    try:
        os.mknod(root / "node", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        os.mkfifo(root / "node")
    return Case("node", (KIND, KIND))


def a_link_to_a_device(root: Path) -> Case:
    a_device(root)
    (root / "out.pt").symlink_to("node")
    return Case("out.pt", (KIND, KIND))


def a_checkpoint_with_a_fifo_in_it(root: Path) -> Case:
    os.mkfifo(model(root / "out") / "pytorch_model.bin")
    return Case("out", (FOREIGN, FOREIGN))


def an_input_inside(root: Path) -> Case:
    model(root / "out" / "sub")
    return Case("out", (INPUT, INPUT), ("out/sub",))


def an_input_inside_by_a_link(root: Path) -> Case:
    model(root / "out" / "sub")
    (root / "link").symlink_to("out/sub")
    return Case("out", (INPUT, INPUT), ("link",))


def an_input_file_linked_into_the_destination(root: Path) -> Case:
    (root / "in").mkdir()
    (root / "in" / "x.safetensors").symlink_to(model(root / "out") / "model.safetensors")
    put(root / "out" / "pytorch_model.bin")
    return Case("out", (INPUT, INPUT), ("in/x.safetensors",))


def a_hard_link_to_an_input(root: Path) -> Case:
    weights(root / "in" / "x.safetensors")
    (model(root / "out") / "pytorch_model.bin").hardlink_to(root / "in" / "x.safetensors")
    return Case("out", (INPUT, INPUT), ("in/x.safetensors",))


def the_parent_of_an_input(root: Path) -> Case:
    return Case(".", (PLACE, PLACE))


def one_of_two_inputs_inside(root: Path) -> Case:
    model(root / "out")
    weights(root / "out" / "adapter.safetensors")
    return Case("out", (INPUT, INPUT), ("source", "out/adapter.safetensors"))


def a_shard_of_an_input(root: Path) -> Case:
    weights(root / "in" / "model-00001-of-00002.safetensors")
    write(root / "in" / "model-00002-of-00002.safetensors", {"v": np.ones(2, np.float32)})
    return Case("in/model-00001-of-00002.safetensors", (INPUT, INPUT), ("in",))


def a_new_file_among_those_of_an_input(root: Path) -> Case:
    return Case("source/edited.safetensors", (INPUT, INPUT))


def a_folder_that_belongs_to_an_input(root: Path) -> Case:
    a_sentence_transformer(root)
    return Case("out/1_Pooling/", (INPUT, INPUT), ("out",))


def a_new_folder_in_an_orbax_input(root: Path) -> Case:
    saved("orbax")(root)
    return Case("out/new/", (INPUT, INPUT), ("out",))


def a_new_folder_in_the_folder_of_an_input(root: Path) -> Case:
    return Case("source/edited/", (FINE, FINE))


def a_file_that_no_reader_of_the_input_folder_takes(root: Path) -> Case:
    return Case("source/edited.npz", (FINE, FINE))


def an_input_that_is_a_link_in_the_destination(root: Path) -> Case:
    model(root / "out")
    (root / "out" / "pytorch_model.safetensors").symlink_to(weights(root / "far" / "x.safetensors"))
    return Case("out", (INPUT, INPUT), ("out/pytorch_model.safetensors",))


def a_snapshot_in_the_cache_of_the_hub(root: Path) -> Case:
    """An edit in place of links to `blobs/`, under names that nobody would expect; the blobs stay."""
    snapshot = root / "models--x" / "snapshots" / "12ab"
    snapshot.mkdir(parents=True)
    for number in (1, 2):
        blob = root / "models--x" / "blobs" / f"b{number}"
        blob.parent.mkdir(exist_ok=True)
        write(blob, {f"w{number}": np.ones(3, np.float32)})
        (snapshot / f"odd-{number:05d}-of-00002.safetensors").symlink_to(f"../../blobs/b{number}")
    place = str(snapshot.relative_to(root))
    return Case(place, (EXISTS, FINE), (place,))


def an_input_folder_itself(root: Path) -> Case:
    model(root / "out")
    return Case("out", (EXISTS, FINE), ("out",))


def an_input_folder_by_a_link(root: Path) -> Case:
    model(root / "out")
    (root / "link").symlink_to("out")
    return Case("out", (EXISTS, FINE), ("link",))


def an_input_of_files_by_names_of_their_own(root: Path) -> Case:
    weights(root / "out" / "odd-00001-of-00002.safetensors")
    write(root / "out" / "odd-00002-of-00002.safetensors", {"v": np.ones(2, np.float32)})
    return Case("out", (EXISTS, FINE), ("out",))


def an_input_file_itself(root: Path) -> Case:
    weights(root / "out.safetensors")
    return Case("out.safetensors", (EXISTS, FINE), ("out.safetensors",))


def the_only_file_of_an_input_folder(root: Path) -> Case:
    model(root / "out")
    return Case("out/model.safetensors", (EXISTS, FINE), ("out",))


def the_folder_of_the_only_input_file(root: Path) -> Case:
    model(root / "out")
    return Case("out", (EXISTS, FINE), ("out/model.safetensors",))


def the_folder_of_an_input_file_among_others(root: Path) -> Case:
    put(model(root / "out") / "pytorch_model.bin")
    return Case("out", (INPUT, INPUT), ("out/model.safetensors",))


def the_home_folder(root: Path) -> Case:
    model(root / "home")
    return Case("home", (PLACE, PLACE))


def what_holds_the_home_folder(root: Path) -> Case:
    (model(root / "all") / "home").mkdir()
    return Case("all", (PLACE, PLACE))


TABLE: tuple[Maker, ...] = (
    nothing, nothing_behind_a_link, a_file, a_link_to_a_file, a_file_where_a_folder_should_go, an_empty_folder,
    a_folder_of_one_file, a_link_to_a_folder, a_folder_of_shards_with_stale_ones, a_folder_of_shards_by_other_names,
    a_folder_of_one_file_by_another_name, a_collection_of_models, a_checkpoint_with_an_unrelated_one_beside,
    what_a_trainer_resumes_from, a_sentence_transformer, a_folder_of_a_side_file_with_more_in_it,
    a_model_with_code_that_its_config_names, saved("orbax"), saved("orbax", version="v0"), saved("dcp"), saved("torch"),
    orbax_without_a_store, orbax_with_notes_inside, orbax_with_another_item, steps_of_orbax, a_clone_of_a_repository,
    a_model_beside_its_source_code, a_model_beside_notes, a_model_beside_a_link_to_a_folder,
    a_folder_without_a_checkpoint, documents_and_a_config_alone, a_fifo, a_fifo_where_a_folder_should_go,
    a_link_to_a_fifo, a_socket, a_device, a_link_to_a_device, a_checkpoint_with_a_fifo_in_it, an_input_inside,
    an_input_inside_by_a_link, an_input_file_linked_into_the_destination, a_hard_link_to_an_input,
    the_parent_of_an_input, one_of_two_inputs_inside, a_shard_of_an_input, a_new_file_among_those_of_an_input,
    a_folder_that_belongs_to_an_input, a_new_folder_in_an_orbax_input, a_new_folder_in_the_folder_of_an_input,
    a_file_that_no_reader_of_the_input_folder_takes, an_input_that_is_a_link_in_the_destination,
    a_snapshot_in_the_cache_of_the_hub,
    an_input_folder_itself, an_input_folder_by_a_link, an_input_of_files_by_names_of_their_own, an_input_file_itself,
    the_only_file_of_an_input_folder, the_folder_of_the_only_input_file, the_folder_of_an_input_file_among_others,
    the_home_folder, what_holds_the_home_folder,
)  # fmt: skip


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """All that there is below a folder, with modes and contents; links and nodes as what they are."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, inner, files in os.walk(root):
        for path in (Path(folder, name) for name in (*inner, *files)):
            status = path.lstat()
            content = (
                path.read_bytes()
                if path.is_file() and not path.is_symlink()
                else os.readlink(path)
                if path.is_symlink()
                else b""
            )
            found[str(path.relative_to(root))] = (status.st_mode, status.st_rdev, content)
    return found


def plan_of(case: Case, *, overwrite: bool) -> bs.Plan:
    inputs = [f"a{n}::{path}" for n, path in enumerate(case.inputs)]
    step = {"scale_": {"target": "a0::.*", "by": 2}}
    output = {"path": case.destination, "alias": "a0", "overwrite": overwrite}
    return bs.load({"inputs": inputs, "transforms": [step], "output": output})


@pytest.fixture
def root(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `source/`, a model, whose home folder is one of its own."""
    model(here / "source")
    home = here / ("all/home" if "what_holds" in os.environ["PYTEST_CURRENT_TEST"] else "home")
    monkeypatch.setenv("HOME", str(home))
    return here


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("make", TABLE, ids=lambda make: make.__name__)
def test_only_a_checkpoint_is_ever_replaced(root: Path, make: Maker, overwrite: bool) -> None:
    case = make(root)
    before = everything(root)
    code = case.codes[overwrite]
    found = tuple(d.code for d in bs.check(plan_of(case, overwrite=overwrite)) if d.severity == "error")
    assert found == ((code,) if code else ())
    assert everything(root) == before
    if code:
        with pytest.raises(PlanError, match=rf"\[{code}\]"):
            plan_of(case, overwrite=overwrite).run()
        assert everything(root) == before
        return
    tensors = {name: value for path in case.inputs[:1] for name, value in bs.open(path).items()}
    plan_of(case, overwrite=overwrite).run()
    made = bs.open(case.destination)
    assert {name: made[name].tolist() for name in made} == {n: (2 * t).tolist() for n, t in tensors.items()}
    changed = {path for path, entry in before.items() if everything(root).get(path) != entry}
    place = os.path.relpath(os.path.realpath(case.destination), root)
    assert all(path == place or path.startswith(place + "/") for path in changed), changed
    left = {path for path in everything(root) if "brainsurgery" in path}
    assert left <= {f"{place}/brainsurgery.lock.json"}


def test_the_file_of_the_home_table_is_meant(root: Path) -> None:
    assert os.path.expanduser("~") == str(root / "home")


# --- What the messages say --------------------------------------------------------------------------------------------


def complaint(case: Case, *, overwrite: bool = True) -> str:
    (found,) = [d for d in bs.check(plan_of(case, overwrite=overwrite)) if d.severity == "error"]
    return f"{found.message}\n{found.hint}"


def test_what_is_in_the_way_is_named_with_what_to_do(root: Path) -> None:
    message = complaint(a_clone_of_a_repository(root))
    assert message == (
        f"output.path: {root}/repo: exists, and cannot be overwritten: it holds .git/, .gitattributes, which are "
        "not part of the checkpoint\n"
        "An output replaces a folder as a whole. Write to another path, or move them away first."
    )
    (root / "repo" / ".git").rename(root / "git")
    assert "it holds .gitattributes, which is not part of the checkpoint" in complaint(Case("repo", ("", "")))
    (root / "repo" / ".gitattributes").rename(root / "gitattributes")
    assert bs.check(plan_of(Case("repo", ("", "")), overwrite=True)) == ()


def test_of_many_things_in_the_way_the_first_are_named(root: Path) -> None:
    for n in range(9):
        put(model(root / "out") / f"note{n}.txt")
    assert "note4.txt, note5.txt, and 3 more, which" in complaint(Case("out", ("", "")))


def test_a_destination_that_exists_says_what_would_go(root: Path) -> None:
    message = complaint(a_folder_of_one_file(root), overwrite=False)
    assert "out: exists already: 2 files, 86 B: config.json, model.safetensors\n" in message
    assert "`overwrite: true`" in message


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (a_device, "node: is a (device|FIFO), which no output replaces"),
        (a_fifo, "out.safetensors: is a FIFO, which no output replaces"),
        (a_socket, "out.npz: is a socket, which no output replaces"),
        (a_file_where_a_folder_should_go, "thesis: is a file, and the output is a folder"),
        (an_input_inside, "cannot be written: it holds sub/model.safetensors, a file of the checkpoint .*/out/sub,"),
        (a_shard_of_an_input, "cannot be written: it is a file of the checkpoint .*/in, which this run reads"),
        (a_new_file_among_those_of_an_input, "it would lie among the files of the checkpoint .*/source, which"),
        (the_parent_of_an_input, "cannot be replaced as a whole: it is the current folder"),
        (the_home_folder, "home: cannot be replaced as a whole: it is a home folder"),
        (a_folder_without_a_checkpoint, "exists, and cannot be overwritten: it holds no checkpoint, but chapter.tex"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_refusal_says_why(root: Path, make: Maker, text: str) -> None:
    assert re.search(text, complaint(make(root)))


# --- Places -----------------------------------------------------------------------------------------------------------

ELSEWHERE = ProtectedPlaces(frozenset(), (), "")


@pytest.mark.parametrize("mount", ["out", "out/d", "out/pytorch_model.bin"])
def test_a_mount_point_and_what_holds_one_are_refused(root: Path, mount: str) -> None:
    put(model(root / "out") / "pytorch_model.bin")
    known = ELSEWHERE._replace(mounts=frozenset({"/", "/proc", str(root / mount)}))
    with pytest.raises(
        StoreError, match=r"out: cannot be replaced as a whole: .* a mount point\n.*example .*/out/model"
    ):
        replacement("out", known, directory=True)


def test_mount_points_beside_a_destination_do_not_matter(root: Path) -> None:
    known = ELSEWHERE._replace(mounts=frozenset({"/", f"{root}/out2", f"{root}/ou"}))
    found = replacement(str(model(root / "out")), known, directory=True)
    assert found is not None
    assert found.files == ("config.json", "model.safetensors")


def test_the_root_is_refused() -> None:
    with pytest.raises(StoreError, match=r"^/: cannot be replaced as a whole: it is the root of the file system"):
        replacement("/", ELSEWHERE, directory=True)


def test_the_places_of_this_process_are_known(root: Path) -> None:
    found = replacing.list_protected_places()
    assert found.current == str(root)
    assert str(root / "home") in found.homes
    assert "/proc" in found.mounts or not Path("/proc/self/mountinfo").exists()


MOUNTED = """
mount -t tmpfs none {place}/out/d || exit 0
echo mounted
echo precious > {place}/out/d/file
{python} -c "
import brainsurgery_jax as bs
try: bs.load({plan!r}).run()
except bs.PlanError as error: print(error)
"
cat {place}/out/d/file
"""


def test_a_file_system_mounted_inside_keeps_its_files(root: Path) -> None:
    """In a mount namespace of its own; where we may not make one, as far as the decision goes."""
    saved("orbax", version="v0")(root)
    plan = {"inputs": ["source"], "output": {"path": "out", "overwrite": True}}
    script = MOUNTED.format(place=root, python=sys.executable, plan=plan)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    line = [shutil.which("unshare") or "true", "-rm", "sh", "-c", script]
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True)
    if done.stdout.startswith("mounted\n"):
        assert "[io-output-place]" in done.stdout
        assert done.stdout.endswith("\nprecious\n")
    known = ELSEWHERE._replace(mounts=frozenset({str(root / "out" / "d")}))
    with pytest.raises(StoreError, match="is a mount point"):
        replacement("out", known, directory=True)


# --- Other files that are read ----------------------------------------------------------------------------------------


def test_a_plan_and_ops_count_as_inputs(root: Path) -> None:
    model(root / "out")
    put(root / "out" / "config.json", '{"auto_map": {"AutoModel": "my_ops.X"}}')
    put(root / "out" / "my_ops.py", "")
    with pytest.raises(
        StoreError, match=r"out: cannot be written: it holds my_ops\.py, .*/out/my_ops\.py, which this run"
    ):
        check_destination("out", 0, True, directory=True, reads=Reads({}, (str(root / "out" / "my_ops.py"),)))


def test_a_plan_inside_the_destination_is_not_lost(root: Path) -> None:
    plan = put(model(root / "out") / "plan.yaml", "inputs: [source]\noutput: {path: out, overwrite: true}\n")
    with pytest.raises(PlanError, match=r"it holds plan\.yaml, .*which this run reads \[io-output-input\]"):
        bs.load(str(plan)).run()
    assert plan.exists()


# --- Space and parents ------------------------------------------------------------------------------------------------


def test_checking_a_destination_writes_nothing(here: Path) -> None:
    check_destination("a/b/m.safetensors", 1000, overwrite=False, directory=False)
    assert os.listdir(here) == []


def test_a_parent_that_is_a_file_is_found_before_the_run(here: Path) -> None:
    put(here / "a")
    with pytest.raises(StoreError, match=r"cannot be created: .*/a is a file, not a folder"):
        check_destination("a/b/out", 0, overwrite=False, directory=True)


def test_a_parent_that_cannot_be_written_is_found_before_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"cannot be created: the folder .* is not writable"):
        check_destination("out", 0, overwrite=False, directory=True)


@pytest.mark.parametrize("mode", [0o1777, 0o777])
def test_what_another_user_owns_in_a_sticky_folder_is_found_before_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    write("m.safetensors", {"w": np.ones(3, np.float32)})
    here.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat("m.safetensors").st_uid + 1)
    if mode == 0o777:
        assert check_destination("m.safetensors", 0, overwrite=True, directory=False) is not None
        return
    with pytest.raises(StoreError, match=r"belongs to another user, and in .* only owners may replace files"):
        check_destination("m.safetensors", 0, overwrite=True, directory=False)
    assert check_destination("new.safetensors", 0, overwrite=True, directory=False) is None


def test_too_little_space_is_told_in_figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(replacing.shutil, "disk_usage", lambda path: Usage(3 << 20))
    with pytest.raises(
        StoreError, match=r"too little space: 5.0 GB to be written, 3.0 MB free \(5368709120 and 3145728"
    ):
        check_destination("out", 5 << 30, overwrite=False, directory=True)


@pytest.mark.parametrize("inner", ["", "/model.safetensors"])
def test_what_an_interrupted_run_left_is_no_input_of_a_run_that_would_remove_it(here: Path, inner: str) -> None:
    left = leftovers.beside(str(here / "out.safetensors"), leftovers.PARTIAL, this_run()._replace(start=1))
    if inner:
        os.mkdir(left)
    write(left + inner, {"w": np.ones(3, np.float32)})
    with pytest.raises(PlanError, match=r"is what an interrupted run left of .* a run that writes there removes it"):
        bs.load({"inputs": [f"m::{left}"], "output": "out.safetensors"}).run()
    assert os.path.exists(left + inner)
    bs.load({"inputs": [f"m::{left}"], "output": "other.safetensors"}).run()
    os.rename(left, "salvaged.safetensors" if not inner else "salvaged")
    bs.load({"inputs": [f"m::salvaged{'' if inner else '.safetensors'}"], "output": "out.safetensors"}).run()
