"""The short form of the campaign: the corpus, checkpoints that are right, and what random changes make of both. The
changes are always the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.torch.pickles import unpickle
from tests.fuzz import checkpoints
from tests.fuzz.campaign import CORPUS
from tests.fuzz.targets import DOCUMENTED, TARGETS, Bytes, Target, read_header
from tests.fuzz.watching import Escape, Watch

CHANGED = {"config": 60, "plan": 60, "ocdbt": 60, "orbax": 60, "dcp": 60}
"""How many changed inputs each target gets, of those that are slow."""


def seeds(name: str, target: Target, folder: Path) -> list[bytes]:
    """What a target starts from: the files of the corpus, its checkpoints, its texts."""
    saved = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*saved, *target.seeds, *checkpoints.texts(name, folder)]


def changed(random: Random, data: bytes) -> bytes:
    """The bytes with a few of them changed, lost, doubled, or replaced by what numbers and texts go wrong at."""
    made = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(made) + 1)
        match random.randrange(4):
            case 0 if made:
                made[at % len(made)] ^= 1 << random.randrange(8)
            case 1:
                del made[at : at + random.randint(1, 8)]
            case 2:
                made[at:at] = made[max(0, at - random.randint(1, 16)) : at]
            case _:
                made[at : at + random.choice((0, 1, 8))] = random.choice(PIECES)
    return bytes(made)


PIECES = (
    b"", b"\0" * 8, b"\xff" * 8, b"-1", b"1e999", b"9" * 25, b"null", b"[]", b"{}", b'""', b"../x", b"[" * 40, b"NaN",
    b"\xed\xa0\x80", b'"\\ud800"', b"\x7f\xff\xff\xff", b"true", b",", b":",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "world").mkdir()
    monkeypatch.chdir(tmp_path / "world")
    yield tmp_path
    assert os.listdir(tmp_path) in (["seeds", "world"], ["world", "seeds"]), "a file outside"


@pytest.mark.parametrize("name", TARGETS)
def test_files_of_strangers_come_to_a_documented_error(name: str, place: Path):
    target = TARGETS[name](place / "world")
    start = seeds(name, target, place / "seeds")
    random = Random(f"{name} 2026")
    more = [changed(random, random.choice(start)) for _ in range(CHANGED.get(name, 200))]
    for data in (*start, *more):
        with suppress(*DOCUMENTED):
            target.read(data)


@pytest.mark.parametrize("name", [n for n in TARGETS if n not in ("plan", "oly", "pickle")])
def test_each_target_reads_something_that_is_right(name: str, place: Path):
    target = TARGETS[name](place / "world")
    target.read((*target.seeds, *checkpoints.texts(name, place / "seeds"))[0])


@given(st.binary(max_size=200))
@settings(max_examples=150, derandomize=True, deadline=None, database=None)
def test_any_bytes_are_a_header_or_an_error(data: bytes):
    with suppress(StoreError):
        read_header(Bytes(data))


@given(st.lists(st.sampled_from(b"()]}.teusbQR0\x85\x86\x87\x90\x91\x93K\x01Xq\x00h2ld\x8f"), max_size=60).map(bytes))
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_any_sequence_of_steps_is_a_pickle_or_an_error(data: bytes):
    with suppress(StoreError):
        unpickle(data + b".", "fuzzed")


def test_the_watch_notices_what_is_opened_outside(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("x")
    watch = Watch(tmp_path / "inside")
    with pytest.raises(Escape, match="secret"), watch:
        open(tmp_path / "inside/../secret").close()
    with watch:
        (tmp_path / "inside/x").write_text("y")
