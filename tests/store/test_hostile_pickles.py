"""Pickles made to take over a machine, to hang it, or to fill it: steps, objects and memory follow from their length.

Each trap is written opcode by opcode, `n` of them where it grows. What is asserted are counts, never seconds: a step is
one opcode in constant time, so that a pickle that ends after few steps does not hang.
"""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.nesting import NotPlain, plain
from brainsurgery_jax.store.torch import pickle_machine, pickle_opcodes
from brainsurgery_jax.store.torch.pickle_machine import Buffer, Damaged, Excessive, Name, Object, PickleMachine
from brainsurgery_jax.store.torch.pickle_opcodes import run

STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0atQ"  # of ten elements
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DOUBLED = b"2\x86"  # duplicate, and make a tuple of both


def text(value: bytes) -> bytes:
    return b"X" + pack("<I", len(value)) + value


def tensor(shape: bytes = b"K\x0a\x85", strides: bytes = b"K\x01\x85", flags: bytes = b"") -> bytes:
    return REBUILD + b"(" + STORAGE + b"K\x00" + shape + strides + b"\x89}" + flags + b"tR"


def shared_dicts(n: int) -> bytes:
    """A dict of two entries that are one dict of two entries that are one dict ..., `n` deep."""
    level = b"q%c0}(" + text(b"a") + b"h%c" + text(b"b") + b"h%cu"
    levels = b"".join(level % (i, i, i) for i in range(1, min(n, 200)))
    return b"}" + text(b"x") + b"}" + levels + b"s."


TRAPS: dict[str, Callable[[int], bytes]] = {
    "a shared tuple as a key": lambda n: b"})" + DOUBLED * n + b"K\x01s.",
    "a shared frozenset in a key": lambda n: b"}(K\x01\x91" + DOUBLED * n + b"K\x01s.",
    "a shared tuple in a set": lambda n: b"\x8f(" + b")" + DOUBLED * n + b"\x90.",
    "a deep persistent id": lambda n: b")" + DOUBLED * n + b"Q.",
    "a deep persistent id in a storage": lambda n: b"(" + text(b"storage") + b")" + DOUBLED * n + b"NNNtQ.",
    "deep flags of a tensor": lambda n: tensor(flags=b")" + DOUBLED * n)[:-2] + b"tR.",
    "a large memo": lambda n: b"}r\xff\xff\xff\x0f.",
    "many memos": lambda n: b"}" + b"".join(b"r" + pack("<I", 4099 * i) for i in range(n)) + b".",
    "one list in many dicts": lambda n: b"](" + (b"(" + text(b"a") + b"K\x01t") * n + b"eq\x010"
    + b"ccollections\nOrderedDict\nq\x020](" + b"h\x02h\x01\x85R" * n + b"e.",
    "empty dicts": lambda n: b"](" + b"}" * n + b"e.",
    "empty lists, one in another": lambda n: b"]" * n + b"a" * (n - 1) + b".",
    "tuples, one in another": lambda n: b")" + b"\x85" * n + b".",
    "tensors of many dimensions": lambda n: b"](" + REBUILD + b"q\x010(" + STORAGE + b"K\x00](" + b"K\x01" * 64
    + b"eq\x03h\x03\x89}tq\x020" + b"h\x01h\x02R" * n + b"e.",
    "long keys of tuples": lambda n: text(b"a" * 1000) + b"q\x010}("
    + b"".join(b"h\x01M" + pack("<H", i % 65536) + b"\x86K\x01" for i in range(n)) + b"u.",
    "one long key": lambda n: text(b"a" * 60_000) + b"q\x010}(" + b"h\x01K\x01" * n + b"u.",
    "integers that collide": lambda n: b"}("
    + b"".join(b"\x8a\x08" + pack("<q", i * (2**61 - 1) % 2**63) + b"K\x01" for i in range(n)) + b"u.",
    "bytes made of one text": lambda n: text(b"a" * 1000) + b"q\x010c_codecs\nencode\nq\x020]("
    + (b"h\x02h\x01" + text(b"latin1") + b"\x86R") * n + b"e.",
    "a list without containers, shared": lambda n: b"](](" + b"K\x01" * n + b"eq\x01" + b"h\x01" * n + b"e.",
    "shared dicts": shared_dicts,
    "shared lists of a tensor": lambda n: tensor() + b"".join(b"q\x010](h\x01h\x01e" for _ in range(n)) + b".",
    "a text that is cut off": lambda n: b"\x8d" + pack("<Q", 1 << 40) + b".",
    "a number that is cut off": lambda n: b"\x8b\xff\xff\xff\x7f.",
    "a frame that is cut off": lambda n: b"\x95" + pack("<Q", 1 << 60) + b"}.",
    "a line without end": lambda n: b"c" + b"a" * n,
    "a number of many digits": lambda n: b"I" + b"9" * n + b"\n.",
    "a long name": lambda n: b"c" + b"a" * n + b"\nb\n.",
}  # fmt: skip


def machine(data: bytes) -> PickleMachine:
    return PickleMachine(Buffer(b"\x80\x04" + data), {}, {}, lambda pid: Object(None, pid))


def opened(folder: Path, data: bytes) -> Any:
    with zipfile.ZipFile(folder / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x04" + data)
        archive.writestr("m/data/0", bytes(40))
    return open_source(str(folder / "m.pt"))


@pytest.mark.parametrize("name", TRAPS)
def test_steps_and_objects_are_no_more_than_the_bytes_of_a_pickle(name: str) -> None:
    data = TRAPS[name](10_000)
    found = machine(data)
    with suppress(Damaged, Excessive):
        run(found)
    assert found.steps <= len(data) + 2
    assert found.objects <= len(data) + pickle_machine.SMALL + 100


@pytest.mark.parametrize("name", TRAPS)
def test_opening_takes_memory_in_proportion_to_the_file(tmp_path: Path, name: str) -> None:
    data = TRAPS[name](4_000)
    opened(tmp_path, b"}.")  # imports
    tracemalloc.start()
    try:
        opened(tmp_path, data).close()
    except StoreError as refused:
        assert len(str(refused)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2_000_000 + 1000 * len(data)


def test_the_traps_would_catch_an_ordinary_reader() -> None:
    """Those that hang or fill a machine do so with an ordinary reader at a depth that is measured here by doubling."""

    class Hashed:
        count = 0

        def __hash__(self) -> int:
            Hashed.count += 1
            return 1

    key: Any = Hashed()
    for _ in range(12):
        key = (key, key)
    hash(key)
    assert Hashed.count == 2**12


def test_a_copied_list_counts_as_often_as_it_is_copied() -> None:
    data = TRAPS["one list in many dicts"](2000)
    from brainsurgery_jax.store.torch.pickles import _CALLS, _VALUES

    found = PickleMachine(Buffer(b"\x80\x04" + data), _VALUES, _CALLS, lambda pid: Object(None, pid))
    with pytest.raises(
        Excessive, match=rf"it makes more than {found.most_objects:,} objects of {len(data) + 2:,} bytes"
    ):
        run(found)


@pytest.mark.parametrize(("module", "limit"), [(pickle_opcodes, "MOST_STEPS"), (pickle_machine, "MOST_OBJECTS")])
def test_there_is_a_limit_to_large_files_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any, limit: str
) -> None:
    monkeypatch.setattr(module, limit, 1000)
    with pytest.raises(
        StoreError, match=r"m\.pt: its pickle is no pickle of tensors: it (has|makes) more than 1,000 o"
    ):
        opened(tmp_path, TRAPS["empty dicts"](2000))


def test_entries_that_a_file_shares_have_a_limit_that_follows_from_what_it_spells(tmp_path: Path) -> None:
    levels = b"".join(b"q\x010}(" + text(b"a") + b"h\x01" + text(b"b") + b"h\x01u" for _ in range(40))
    with pytest.raises(StoreError, match=r"holds more than 11,\d\d\d entries"):
        opened(tmp_path, tensor() + levels + b".")


def test_a_container_that_holds_itself_is_read_to_a_depth(tmp_path: Path) -> None:
    loop = b"}q\x01(" + text(b"a") + b"h\x01" + text(b"w") + tensor() + b"u."
    with pytest.raises(StoreError, match="nested deeper than 100 levels"):
        opened(tmp_path, loop)


def test_a_long_log_beside_a_model_does_no_harm(tmp_path: Path) -> None:
    log = b"](" + (b"}" + text(b"loss") + b"K\x01s") * 150_000 + b"e"
    header = opened(tmp_path, b"}(" + text(b"w") + tensor() + text(b"log") + log + b"u.").header
    assert (list(header.tensors), dict(header.left_out)) == (["w"], {"log": "list"})


# --- What a state or a call could change ------------------------------------------------------------------------------


def test_calls_instances_and_states_are_objects_that_only_record() -> None:
    called = run(machine(b"cbuiltins\neval\n" + text(b"1") + b"\x85R."))
    assert isinstance(called, Object)
    assert (called.kind, called.given) == (Name("builtins", "eval"), ("1",))
    for made in (b"cos\nsystem\n)\x81", b"(cos\nsystem\no", b"(ios\nsystem\n", b"cos\nsystem\n)}\x92"):
        built = run(machine(made + b"}" + text(b"a") + b"K\x01sb."))
        assert isinstance(built, Object)
        assert (built.kind, built.state) == (Name("os", "system"), {"a": 1})


@pytest.mark.parametrize("target", [b"}", b"]", b")", b"K\x01", b"cbuiltins\ndict\n", text(b"a")])
def test_a_state_for_what_is_no_object_changes_nothing(target: bytes) -> None:
    before = run(machine(target + b"."))
    after = run(machine(target + b"}" + text(b"__class__") + b"K\x01sb."))
    assert (type(after), after) == (type(before), before)


OPCODES = [getattr(pickle, name) for name in dir(pickle) if isinstance(getattr(pickle, name), bytes) and name.isupper()]


@given(
    st.lists(
        st.one_of(st.sampled_from([*OPCODES, b"K\x01", b"X\x01\x00\x00\x00a"]), st.binary(max_size=6)), max_size=60
    )
)
@example([b"."])
@example([b"(", b"t", b"1", b"."])
def test_any_bytes_are_an_object_or_damage(parts: list[bytes]) -> None:
    found = machine(b"".join(parts) + b".")
    with suppress(Damaged, Excessive):
        run(found)
    assert found.steps <= sum(map(len, parts)) + 3


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.binary(max_size=20),
    st.binary(max_size=20).map(bytearray), st.complex_numbers(allow_nan=False), st.sets(st.integers(), max_size=3),
)  # fmt: skip
KEYS = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
SAFE = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=20,
)  # fmt: skip


@given(SAFE, st.integers(0, 5))
def test_plain_data_come_back_as_they_were_in_every_protocol(value: Any, protocol: int) -> None:
    found = run(PickleMachine(Buffer(pickle.dumps(value, protocol)), {}, {}, lambda pid: None))
    again = plain(found)
    assert (type(again), again) == (type(value), value)


NOT_PLAIN = {
    "a class": b"cos\nsystem\n.",
    "a call": b"cos\nsystem\n)R.",
    "a class as a key": b"}cos\nsystem\nK\x01s.",
    "too many levels": b"](" + b"]" * 200 + b"a" * 200 + b"e.",
    "a number of bytes": b"c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    "an encoding that unpacks": b"c_codecs\nencode\n" + text(b"a") + text(b"zlib") + b"\x86R.",
    "a large set": b"\x8f(" + b"K\x01" * 20_000 + b"\x90.",
    "a dict of large integers": TRAPS["integers that collide"](20_000),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_no_plain_data_is_never_taken_for_it(name: str) -> None:
    with pytest.raises(NotPlain):
        plain(run(machine(NOT_PLAIN[name])))


def test_text_that_a_million_places_share_is_not_written_a_million_times() -> None:
    shared = text(b"a" * 60_000) + b"q\x010](" + b"h\x01" * 20_000 + b"e."
    with pytest.raises(ValueError, match="the values take more than 1,000,000 items"):
        plain(run(machine(shared)))


# --- Where tensors are said to be -------------------------------------------------------------------------------------


def placed_at(folder: Path, start: int, shape: list[int], strides: list[int]) -> Any:
    """A tensor 'w' that is said to begin at an element of a storage of ten, to have a shape and strides."""
    spelled = [b"(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in ns) + b"t"
               for ns in (shape, strides)]  # fmt: skip
    first = b"\x8a\x09" + start.to_bytes(9, "little", signed=True)
    return opened(folder, b"}" + text(b"w") + REBUILD + b"(" + STORAGE + first + spelled[0] + spelled[1] + b"\x89}tRs.")


@pytest.mark.parametrize(
    ("start", "shape", "strides"),
    [(8, [3], [1]), (0, [11], [1]), (0, [2, 6], [5, 1]), (0, [1 << 61], [8]), (1 << 61, [1], [1]), (0, [4], [1 << 61])],
)
def test_a_tensor_beyond_its_storage_is_refused_however_large(
    tmp_path: Path, start: int, shape: list[int], strides: list[int]
) -> None:
    with pytest.raises(StoreError, match=r"tensor 'w': f32\[[\d,]+\] is said to be in a storage of 40 bytes"):
        placed_at(tmp_path, start, shape, strides)


@pytest.mark.parametrize(
    ("start", "shape", "strides"),
    [(-1, [3], [1]), (3, [3], [-1]), (0, [-3], [1]), (0, [3], [1, 1]), (0, [3], [1 << 63])],
)
def test_places_that_are_no_counts_are_damage(tmp_path: Path, start: int, shape: list[int], strides: list[int]) -> None:
    with pytest.raises(StoreError, match="the shape, the strides or the place of a tensor are no counts"):
        placed_at(tmp_path, start, shape, strides)


def test_a_tensor_that_a_stride_of_zero_expands_is_read_in_part_whatever_its_size(tmp_path: Path) -> None:
    source = placed_at(tmp_path, 9, [1 << 40, 1], [0, 1])
    assert source.header.tensors["w"].aval.shape == (1 << 40, 1)
    assert source.read_range("w", 1 << 39, (1 << 39) + 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("claimed", [41, 1 << 31])
def test_a_storage_beyond_the_end_of_the_file_is_refused(tmp_path: Path, claimed: int) -> None:
    opened(tmp_path, b"}" + text(b"w") + tensor() + b"s.")
    raw = bytearray((tmp_path / "m.pt").read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # of the last member, which is the storage
    raw[entry + 20 : entry + 28] = pack("<II", claimed, claimed)
    (tmp_path / "m.pt").write_bytes(raw[: entry - 1] + raw[entry:] if claimed == 41 else raw)
    with pytest.raises(StoreError, match=r"cut off inside the member|damaged"):
        open_source(str(tmp_path / "m.pt"))


def test_storages_that_overlap_are_read_as_they_lie(tmp_path: Path) -> None:
    """As two views of one storage; a reader is not harmed, and nothing is written there."""
    second = STORAGE.replace(b"X\x01\x00\x00\x000X", b"X\x01\x00\x00\x001X")
    other = tensor().replace(STORAGE, second)
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x04}(" + text(b"w") + tensor() + text(b"v") + other + b"u.")
        archive.writestr("m/data/0", bytes(range(40)))
        archive.writestr("m/data/1", bytes(40))
        archive.getinfo("m/data/1").header_offset = archive.getinfo("m/data/0").header_offset
    source = open_source(str(tmp_path / "m.pt"))
    assert source.read("v").tobytes() == source.read("w").tobytes() == bytes(range(40))
