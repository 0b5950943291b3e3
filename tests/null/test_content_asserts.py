"""Asserts on layer numbers, tied pairs and outputs, and fingerprints of inputs: from a plan to its verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests import checkpoints
from tests.null.world import Headers, after, complaints

M = {
    "h.0.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "h.1.w": np.ones(3, ml_dtypes.bfloat16),
    "head": np.arange(4, dtype=np.int64),
}


def digest_by_hand(tensors: Mapping[str, np.ndarray]) -> str:
    """The fingerprint of tensors of less than a piece, from its definition."""
    total = hashlib.blake2b(digest_size=16)
    words = {"float32": "f32", "bfloat16": "bf16", "int64": "i64"}
    for name, x in sorted(tensors.items()):
        piece = hashlib.blake2b(x.tobytes(), digest_size=16).digest()
        aval = f"{words[x.dtype.name]}[{','.join(map(str, x.shape))}]"
        total.update(f"{name}\0{aval}\0".encode() + hashlib.blake2b(piece, digest_size=16).digest() + b"\n")
    return f"blake2b:{total.hexdigest()}"


def run(tmp_path: Path, plan: Mapping[str, Any]) -> None:
    (tmp_path / "out.safetensors").unlink(missing_ok=True)
    bs.load({"output": str(tmp_path / "out.safetensors"), **plan}).run()


def put(tmp_path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    path = tmp_path / "m.safetensors"
    checkpoints.write(path, tensors)
    return str(path)


def test_an_input_with_its_fingerprint_is_read_and_another_content_is_refused(tmp_path: Path):
    path = put(tmp_path, M)
    plan = {"inputs": [{"alias": "m", "path": path, "fingerprint": digest_by_hand(M)}]}
    run(tmp_path, {**plan, "transforms": [{"delete": {"target": "head"}}]})
    flipped = {**M, "h.0.w": M["h.0.w"].copy()}
    flipped["h.0.w"][1, 2] = np.nextafter(np.float32(5), np.float32(6))
    for wrong in (flipped, {**M, "h.1.w": M["h.1.w"].reshape(1, 3)}, {n: M[n] for n in ("h.0.w", "head")}):
        put(tmp_path, wrong)
        with pytest.raises(bs.PlanError, match=f"fingerprint of 'm' is {digest_by_hand(wrong)}, not"):
            run(tmp_path, plan)
        assert not (tmp_path / "out.safetensors").exists()


def test_an_empty_fingerprint_is_none_and_one_within_a_plan_counts(tmp_path: Path):
    path = put(tmp_path, M)
    run(tmp_path, {"inputs": [{"path": path, "fingerprint": ""}]})
    inner = {"inputs": [{"path": path, "fingerprint": "blake2b:0"}], "transforms": [], "output": str(tmp_path / "x")}
    with pytest.raises(bs.PlanError, match="not blake2b:0"):
        bs.load({"transforms": [{"execute": {"plan": inner}}]}).run()


def test_a_fingerprint_is_that_of_the_input_wherever_the_assert_stands_and_whatever_the_budget(tmp_path: Path):
    big = {"w": np.arange((1 << 20) + 5, dtype=np.float32), "v": M["head"]}
    path = put(tmp_path, big)
    found = set()
    for memory in (300 << 20, 2 << 30):
        steps = [{"scale_": {"target": ".*", "by": 2}}, {"assert": {"fingerprint": {"of": "m", "is": "?"}}}]
        with pytest.raises(bs.PlanError) as caught:
            bs.load({"inputs": [f"m::{path}"], "transforms": steps}).run(memory=memory)
        found.add(str(caught.value))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("pattern", "why"),
    [(r"h\.(\d+)\..+", ""), (r"g\.(\d+)\.w", "has no number 1, 2, but 3"), (r"k\.(\d+)\.w", "has no number 0, but 1")],
)
def test_layer_numbers_are_contiguous_or_not(pattern: str, why: str):
    names = ("h.0.w", "h.1.w", "h.1.b", "g.0.w", "g.3.w", "k.1.w")
    world = Headers({"m.safetensors": dict.fromkeys(names, "f32[2]")})
    steps = ({"assert": {"contiguous": pattern}},)
    assert [why in d.message for d in after(*steps, world=world).diagnostics] == [True] * bool(why)
    assert complaints({"assert": {"contiguous": {"of": r"k\.(\d+)\.w", "start": 1}}}, world=world) == []


def test_what_is_written_must_satisfy_the_asserts_of_the_output(tmp_path: Path):
    path = put(tmp_path, M)
    out = {
        "path": str(tmp_path / "out.safetensors"),
        "alias": "b",
        "asserts": [{"finite": ".*"}, {"count": {"of": ".*", "is": 3}}],
    }
    plan = {"inputs": [f"a::{path}", f"b::{path}"], "transforms": [{"delete": {"target": "a::head"}}]}
    run(tmp_path, {**plan, "output": out})
    with pytest.raises(bs.PlanError, match=r"assert\.all: 2 tensors match"):
        run(tmp_path, {**plan, "output": {**out, "alias": "a"}})
    with pytest.raises(bs.PlanError, match="expected a list of asserts"):
        bs.load({**plan, "output": {**out, "asserts": {"finite": ".*"}}}).check()
    with pytest.raises(bs.PlanError, match="unknown assert operator 'infinite'"):
        run(tmp_path, {**plan, "output": {**out, "asserts": [{"infinite": ".*"}]}})


def test_a_tensor_that_is_moved_keeps_how_often_it_was_written():
    world = Headers({"m.safetensors": {"a": "f32[2]", "b": "f32[2]"}})
    swap = [{"scale_": {"target": "a", "by": 2}}, {"move": {"from": "(a|b)", "to": r"x.\1"}},
            {"move": {"from": r"x\.a", "to": "b"}}]  # fmt: skip
    counts = [{"writes": {"of": "b", "is": 2}}, {"writes": {"of": r"x\.b", "is": 1}}]
    assert complaints(*swap, {"assert": {"all": counts}}, world=world) == []


def test_an_equation_with_sets_and_captured_numbers_holds_for_each_match(tmp_path: Path):
    layers = {f"h.{i}.w": np.full(3, i, np.float32) for i in range(3)}
    path = put(tmp_path, {**layers, "sum": np.full(3, 3, np.float32)})
    asserts = [
        {"holds": {"from": {"w": r"h\.(?P<i>\d)\.w"}, "expr": "w == ${i}"}},
        {"holds": {"from": {"w": r"h\..*", "s": "sum"}, "expr": "s == sum_over(w)"}},
    ]
    run(tmp_path, {"inputs": [path], "transforms": [{"assert": {"all": asserts}}]})
    with pytest.raises(bs.PlanError, match=r"does not hold for 'h\.1\.w'.*1 against 0"):
        run(
            tmp_path,
            {"inputs": [path], "transforms": [{"assert": {"holds": {"from": {"w": r"h\..*"}, "expr": "w == 0"}}}]},
        )


def test_one_rounding_to_a_narrow_float_is_within_the_tolerance_and_two_bits_are_not(tmp_path: Path):
    w = np.linspace(-3, 7, 999, dtype=np.float32)
    narrow = w.astype(ml_dtypes.bfloat16)
    path = put(tmp_path, {"w": w, "n": narrow, "off": (narrow.astype(np.float32) * 1.02).astype(ml_dtypes.bfloat16)})
    run(tmp_path, {"inputs": [path], "transforms": [{"assert": {"holds": "n == w"}}]})
    with pytest.raises(bs.PlanError, match="'off == w' does not hold"):
        run(tmp_path, {"inputs": [path], "transforms": [{"assert": {"holds": "off == w"}}]})


def test_the_fingerprint_of_a_checkpoint_does_not_depend_on_its_format_and_counts_empty_tensors(tmp_path: Path):
    whole = {"w": M["h.0.w"], "none": np.zeros((0, 3), np.float32)}
    checkpoints.write(tmp_path / "m.safetensors", whole)
    np.savez(tmp_path / "m.npz", **whole)
    nothing = hashlib.blake2b(digest_size=16)
    for name, aval, piece in (("none", "f32[0,3]", b""), ("w", "f32[2,3]", None)):
        inner = hashlib.blake2b(whole[name].tobytes(), digest_size=16).digest() if piece is None else None
        digest = b"" if inner is None else hashlib.blake2b(inner, digest_size=16).digest()
        nothing.update(f"{name}\0{aval}\0".encode() + digest + b"\n")
    expected = f"blake2b:{nothing.hexdigest()}"
    assert [bs.fingerprint(tmp_path / f"m.{kind}") for kind in ("safetensors", "npz")] == [expected] * 2
    run(tmp_path, {"inputs": [{"path": str(tmp_path / "m.npz"), "fingerprint": expected}]})
