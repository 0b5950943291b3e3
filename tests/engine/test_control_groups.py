"""The memory that control groups leave: read from trees of files in the forms of both versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from brainsurgery_jax.engine.run.budget import available_bytes, default_budget
from brainsurgery_jax.engine.run.control_groups import bytes_left

V2 = {"limit": "memory.max", "used": "memory.current", "active": "active_file"}
V1 = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes", "active": "total_active_file"}
SPACE = "\\040"
NO_LIMIT = {"memory.max": "max", "memory.limit_in_bytes": "9223372036854771712"}


def group(folder: Path, names: Mapping[str, str], limit: int | None, used: int = 0, pages: int = 0) -> None:
    """Write the files of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names["limit"]).write_text(f"{NO_LIMIT[names['limit']] if limit is None else limit}\n")
    (folder / names["used"]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 300\nrss 5\nfile 650\n{names['active']} {pages}\n")


def process(folder: Path, path: str, mounts: Mapping[Path, str] = {}, *, one: bool = False) -> str:
    """Write what `/proc` tells of a process in the group `path`; `mounts`: the group at the root of each mount. `one`:
    of version 1."""
    own = folder / "self"
    own.mkdir()
    number, kind, options = ("4:memory", "cgroup", "rw,memory") if one else ("0:", "cgroup2", "rw")
    (own / "cgroup").write_text(f"9:cpu,cpuacct:/elsewhere\n{number}:{path}\n")
    lines = [f"35 31 0:32 {root} {str(at).replace(' ', SPACE)} rw shared:9 - {kind} none {options}"
             for at, root in mounts.items()]  # fmt: skip
    (own / "mountinfo").write_text("\n".join(["31 1 0:27 / / rw - ext4 /dev/root rw", *lines]) + "\n")
    return str(own)


@pytest.mark.parametrize("names", [V1, V2], ids=["version 1", "version 2"])
def test_the_limit_of_the_group_of_a_process_is_seen(tmp_path: Path, names: Mapping[str, str]):
    group(tmp_path / "groups/job/step", names, 1000, 900, pages=600)
    own = process(tmp_path, "/job/step", {tmp_path / "groups": "/"}, one=names is V1)
    assert available_bytes(own) == 700


@pytest.mark.parametrize("names", [V1, V2], ids=["version 1", "version 2"])
def test_the_limits_of_all_groups_around_a_process_count(tmp_path: Path, names: Mapping[str, str]):
    group(tmp_path / "groups/job/step", names, None)
    group(tmp_path / "groups/job", names, 1000, 400)
    group(tmp_path / "groups", names, 5000, 100)
    group(tmp_path / "groups/other", names, 10)
    own = process(tmp_path, "/job/step", {tmp_path / "groups": "/"}, one=names is V1)
    left = bytes_left(own)
    assert min(left) == 600 and 4900 in left and 10 not in left


def test_the_group_of_a_container_is_the_root_of_its_mount(tmp_path: Path):
    group(tmp_path / "groups", V1, 1000, 400)
    own = process(tmp_path, "/docker/abc", {tmp_path / "groups": "/docker/abc"}, one=True)
    assert bytes_left(own) == [600]


def test_a_path_outside_of_the_mount_stands_for_its_root(tmp_path: Path):
    group(tmp_path / "groups", V2, 1000, 400)
    assert bytes_left(process(tmp_path, "/../../host", {tmp_path / "groups": "/"})) == [600]


def test_a_mount_point_with_a_space_is_read(tmp_path: Path):
    group(tmp_path / "my groups", V2, 1000)
    assert bytes_left(process(tmp_path, "/", {tmp_path / "my groups": "/"})) == [1000]


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tmp_path: Path):
    group(tmp_path / "groups", V2, 1000, 1200)
    assert bytes_left(process(tmp_path, "/", {tmp_path / "groups": "/"})) == [0]


@pytest.mark.parametrize("names", [V1, V2], ids=["version 1", "version 2"])
def test_a_group_without_a_limit_withholds_nothing(tmp_path: Path, names: Mapping[str, str]):
    group(tmp_path / "groups", names, None, 900)
    own = process(tmp_path, "/", {tmp_path / "groups": "/"}, one=names is V1)
    assert 1 << 20 < available_bytes(own) < 1 << 50


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "4:memory\n", "::::\n"])
def test_what_cannot_be_understood_withholds_nothing(tmp_path: Path, text: str):
    own = Path(process(tmp_path, "/"))
    (own / "cgroup").write_text(text)
    (own / "mountinfo").write_text("35 31\n - cgroup2\n")
    assert bytes_left(str(own)) == []


def test_a_system_without_proc_withholds_nothing(tmp_path: Path):
    assert bytes_left(str(tmp_path / "none")) == []
    assert default_budget().host_bytes >= 256 << 20
