"""Descriptors that are shared, capped, and checked when a file is opened again."""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.descriptors import Descriptors


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for name in "abc":
        (tmp_path / name).write_text(name)
    return [str(tmp_path / name) for name in "abc"]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_least_recently_used_file_is_closed_first(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True, limit=2)
    with files.lease(0) as a, files.lease(1) as b:
        pass
    with files.lease(0), files.lease(2):
        assert is_open(a)
        assert not is_open(b)
    files.close()


def test_a_file_in_use_is_never_closed_under_its_user(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True, limit=1)
    with ExitStack() as stack:
        leased = [stack.enter_context(files.lease(n)) for n in range(3)]
        assert [os.pread(fd, 1, 0) for fd in leased] == [b"a", b"b", b"c"]
        files.close()
        assert all(map(is_open, leased))
    assert not any(map(is_open, leased))


def test_a_file_that_was_replaced_is_noticed_when_it_is_opened_again(paths: list[str], tmp_path: Path) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True, limit=1)
    with files.lease(0):
        pass
    with files.lease(1):
        pass
    (tmp_path / "new").write_text("a")
    os.replace(tmp_path / "new", paths[0])
    with pytest.raises(StoreError, match=r"a: changed while running"), files.lease(0):
        pass
    files.close()


def test_a_closed_set_says_so(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True)
    files.close()
    with pytest.raises(StoreError, match=r"a: was closed, and is used again"), files.lease(0):
        pass


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    files = Descriptors([str(tmp_path / "none")], os.O_RDONLY, watch=True)
    with pytest.raises(StoreError, match=r"none: could not open the file: No such file"), files.lease(0):
        pass


def test_files_that_nobody_closes_are_closed_when_nobody_has_them(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True)
    with files.lease(0) as fd:
        pass
    assert is_open(fd)
    del files
    gc.collect()
    assert not is_open(fd)
