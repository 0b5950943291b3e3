"""`audit`: what it plants, what it says sees it, what it suggests; and that nothing of the user's is touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.auditing.audit import MUTATORS, audit
from brainsurgery_jax.auditing.cases import from_plan
from brainsurgery_jax.auditing.runner import Level
from brainsurgery_jax.auditing.stand_ins import make_stand_ins, shrink_size
from tests.checkpoints import normal, write

SCALE = r"h\.\d+\.attn\.weight"


def model(folder: Path, name: str = "m", seed: int = 0) -> str:
    tensors = {
        f"h.{i}.{part}.weight": normal((6, 6), seed=10 * i + at + seed)
        for i in range(11)
        for at, part in enumerate(("attn", "mlp"))
    }
    return str(write(folder / f"{name}.safetensors", tensors | {"wte.weight": normal((8, 6), seed=99 + seed)}))


def scaling(folder: Path, *asserts: Any) -> dict[str, Any]:
    return {
        "inputs": [f"model::{model(folder)}"],
        "transforms": [{"scale_": {"target": SCALE, "by": 0.5}}, *({"assert": a} for a in asserts)],
        "output": {"path": str(folder / "out.safetensors"), "alias": "model"},
    }


def levels(found: bs.Audit) -> dict[str, set[Level]]:
    by_mutator: dict[str, set[Level]] = {}
    for each in found.planted:
        by_mutator.setdefault(each.mutator, set()).add(each.level)
    return by_mutator


def state(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_plan_without_asserts_sees_names_alone(tmp_path: Path):
    found = levels(audit(bs.load(scaling(tmp_path)), suggestions=False))
    assert found["name misspelt"] == {Level.CHECK}
    missed = {
        "name of another tensor that exists", "pattern reaches too few", "pattern reaches too many", "scale doubled",
        "scale forgotten", "step done twice", "wrong sign of a number", "a bit flipped in an input",
        "a matrix transposed", "an input of another width", "a shard missing", "an input rounded to float16",
    }  # fmt: skip
    assert {name: found[name] for name in missed} == {name: {Level.MISSED} for name in missed}
    assert found["NaN in an input"] == {Level.WARNED}  # by the note on what a run computes


@pytest.mark.parametrize(
    ("given", "mutator"),
    [
        ({"writes": {"of": SCALE, "is": 2}}, "step done twice"),
        ({"writes": {"of": SCALE, "is": 2}}, "pattern reaches too few"),
        ({"unchanged": {"except": [f"model::{SCALE}"]}}, "pattern reaches too many"),
        ({"finite": ".+"}, "NaN in an input"),
        ({"count": {"of": ".+", "is": 23}}, "a shard missing"),
        ({"dtype": {"of": ".+", "is": "float32"}}, "an input of another dtype"),
        ({"shape": {"of": SCALE, "is": [6, 6]}}, "an input of another width"),
    ],
)
def test_an_assert_of_the_plan_is_named_as_what_sees_an_error(given: Any, mutator: str, tmp_path: Path):
    found = audit(bs.load(scaling(tmp_path, given)), suggestions=False, each=1)
    seen = next(each for each in found.planted if each.mutator == mutator)
    assert (seen.level, seen.said.partition(":")[0]) == (Level.ASSERT, f"assert.{next(iter(given))}")


def test_nothing_is_written_and_nothing_of_the_user_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = scaling(tmp_path)
    data["transforms"].append({"save": {"path": str(tmp_path / "snap.safetensors"), "alias": "model"}})
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = state(tmp_path)
    audit(bs.load(data), each=1)
    assert state(tmp_path) == before
    assert list(temporary.iterdir()) == []


def test_a_destination_that_exists_is_not_in_the_way(tmp_path: Path):
    data = scaling(tmp_path)
    bs.load(data).run(durable=False)
    before = state(tmp_path)
    assert audit(bs.load(data), each=1, suggestions=False).planted
    assert state(tmp_path) == before


def test_suggested_asserts_see_the_errors_and_let_the_plan_pass(tmp_path: Path):
    """Tried without the audit: the steps as text, in a plan of their own, on the files themselves."""
    data = scaling(tmp_path)
    found = audit(bs.load(data))
    assert {each.what for each in found.missed} == found.helped
    steps = [yaml.safe_load(line) for each in found.suggestions for line in each.lines]
    steps = [step for at, step in enumerate(steps) if step not in steps[:at]]
    own = data["transforms"]

    def run(*transforms: Any) -> None:
        bs.load({**data, "transforms": [*transforms, *steps]}).run(durable=False, overwrite=True)

    run(*own)
    wrong = [{"scale_": {"target": SCALE, "by": by}} for by in (1, -0.5, 0.25)]
    wrong += [{"scale_": {"target": t, "by": 0.5}} for t in (r"h\.\d\.attn\.weight", r"h\.\d+\..+", r"h\.\d+\.mlp.+")]
    for step in wrong:
        with pytest.raises(bs.PlanError, match=r"assert\."):
            run(step)
    with pytest.raises(bs.PlanError, match=r"assert\."):
        run(*own, *own)
    model(tmp_path, seed=5)
    with pytest.raises(bs.PlanError, match=r"assert\.fingerprint"):
        run(*own)


def test_an_error_that_changes_no_byte_is_equivalent_and_counts_as_neither(tmp_path: Path):
    data = scaling(tmp_path)
    data["transforms"] = [{"cast_": {"target": SCALE, "to": "float32"}}, *data["transforms"]]
    found = audit(bs.load(data), suggestions=False)
    forgotten = next(each for each in found.planted if each.mutator == "cast forgotten")
    assert forgotten.level is Level.EQUIVALENT
    assert forgotten not in (*found.seen, *found.missed)


def test_swapped_inputs_are_seen_by_a_fingerprint_alone(tmp_path: Path):
    base, tuned = model(tmp_path, "a"), model(tmp_path, "b", seed=7)
    step = {"subtract_": {"from": r"base::h\.(.+)", "to": r"tuned::h.\1"}}
    output = {"path": str(tmp_path / "out.safetensors"), "alias": "tuned"}

    def level(inputs: list[Any]) -> Level:
        plan = bs.load({"inputs": inputs, "transforms": [step], "output": output})
        return next(p.level for p in audit(plan, suggestions=False).planted if p.mutator == "inputs swapped")

    assert level([f"base::{base}", f"tuned::{tuned}"]) is Level.MISSED
    told = {"path": base, "alias": "base", "fingerprint": bs.fingerprint(base)}
    assert level([told, f"tuned::{tuned}"]) is Level.ASSERT


def test_a_plan_with_a_mistake_is_refused_as_check_refuses_it(tmp_path: Path):
    data = scaling(tmp_path, {"exists": "nothing"})
    with pytest.raises(bs.PlanError, match=r"assert\.exists"):
        audit(bs.load(data))
    with pytest.raises(bs.PlanError, match=r"assert\.iszero"):
        audit(bs.load(scaling(tmp_path, {"iszero": SCALE})))


# --- Stand-ins ---


def test_large_checkpoints_shrink_together_and_keep_layers_heads_and_ties(tmp_path: Path):
    wide, words = 2048, 4096
    table = np.zeros((words, wide), np.float32)
    table[:8] = normal((8, wide))
    square = np.ones((wide, wide), np.float32)
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "model.safetensors", {"embed.weight": table, "lm_head.weight": table, "layers.0.q.weight": square})
    sizes = {"hidden_size": wide, "vocab_size": words, "num_hidden_layers": 1, "head_dim": 64, "num_heads": 32}
    (folder / "config.json").write_text(json.dumps(sizes))
    data = {
        "inputs": [f"m::{folder}"],
        "transforms": [{"assert": {"tied": {"left": r"lm_head\.weight", "right": "embed.weight"}}},
                       {"scale_": {"target": r"layers\.\d+\.q\.weight", "by": 2}}],
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    plan = bs.load(data)
    shrunk = make_stand_ins(plan)
    (it,) = shrunk.stand_ins.values()
    assert shrunk.factor == 2
    assert {name: x.shape for name, x in it.tensors.items()} == {
        "embed.weight": (2048, 1024), "lm_head.weight": (2048, 1024), "layers.0.q.weight": (1024, 1024),
    }  # fmt: skip
    np.testing.assert_array_equal(it.tensors["embed.weight"], table[:2048, :1024])
    small = {"hidden_size": 1024, "vocab_size": 2048, "head_dim": 32}
    assert json.loads(it.side["config.json"]) == {**sizes, **small}
    found = audit(plan, each=1)
    untied = next(p for p in found.planted if p.mutator == "a stale tied weight")
    assert untied.level is Level.ASSERT
    lines = [line for each in found.suggestions for line in each.lines]
    shape = next(line for line in lines if "shape" in line)
    assert yaml.safe_load(shape)["assert"]["shape"]["is"] in ([words, wide], [wide, wide]), "shapes of the model itself"
    assert r"assert: {fingerprint: {of: m, is: 'blake2b:...'}}" in lines


def test_sizes_that_a_plan_names_are_kept(tmp_path: Path):
    path = write(tmp_path / "m.safetensors", {"a": np.ones((4096, 2304), np.float32), "b": np.ones(2000, np.float32)})
    step = {"scale_": {"target": "a::[:, 1152:]", "by": 2}}
    shrunk = make_stand_ins(bs.load({"inputs": [f"m::{path}"], "transforms": [step], "output": "out.safetensors"}))
    (it,) = shrunk.stand_ins.values()
    assert {name: x.shape for name, x in it.tensors.items()} == {"a": (2048, 2304), "b": (1000,)}


def test_stand_ins_that_would_be_large_are_refused_and_the_remedy_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = scaling(tmp_path)
    monkeypatch.setattr("brainsurgery_jax.auditing.stand_ins.REFUSED_BYTES", 3000)
    with pytest.raises(bs.PlanError, match="the stand-ins would take") as refused:
        audit(bs.load(data))
    assert refused.value.diagnostics[0].hint.startswith("Audit the plan on a smaller model of the same family")
    write(tmp_path / "m.safetensors", {f"h.{i}.attn.weight": normal((6, 6), seed=i) for i in range(3)})
    assert audit(bs.load(data), each=1, suggestions=False).planted


def test_sizes_below_the_limit_and_those_that_are_counts_stay():
    assert [shrink_size(n, 8) for n in (12, 63, 64, 50257)] == [12, 63, 8, 6283]
    assert shrink_size(128, 8, frozenset({128})) == 128
    assert shrink_size(4096, 1) == 4096


def test_a_case_is_the_plan_as_it_was_written(tmp_path: Path):
    plan = bs.load(scaling(tmp_path, {"finite": ".+"}))
    case = from_plan(plan, make_stand_ins(plan).stand_ins)
    assert [step.summary for step in case.plan().data.steps] == [step.summary for step in plan.data.steps]


def test_mutators_have_names_of_their_own():
    assert len({m.name for m in MUTATORS}) == len(MUTATORS) > 40


def test_a_plan_that_was_run_already_is_an_error_that_a_fingerprint_sees(tmp_path: Path):
    data = scaling(tmp_path)
    path = data["inputs"][0].removeprefix("model::")

    def level(inputs: list[Any]) -> Level:
        found = audit(bs.load({**data, "inputs": inputs}), each=1, suggestions=False)
        return next(p.level for p in found.planted if p.mutator == "plan run on its own output")

    assert level(data["inputs"]) is Level.MISSED
    assert level([{"path": path, "alias": "model", "fingerprint": bs.fingerprint(path)}]) is Level.ASSERT


def test_parts_of_one_file_are_checkpoints_of_their_own(tmp_path: Path):
    path = tmp_path / "m.npz"
    tensors: dict[str, Any] = {"a/w": np.zeros(3, "f4"), "b/w": np.ones(3, "f4")}
    np.savez(path, **tensors)
    plan = bs.load({"inputs": [f"x::{path}::a", f"y::{path}::b"], "transforms": [{"delete": {"target": "y::w"}}]})
    held = [it.tensors["w"].tolist() for it in make_stand_ins(plan).stand_ins.values()]
    assert held == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("config", ["{oops", "[1]", "[" * 100_000])
def test_a_damaged_config_does_not_end_an_audit(config: str, tmp_path: Path):
    (folder := tmp_path / "model").mkdir()
    write(folder / "model.safetensors", {"w": normal((4, 4))})
    (folder / "config.json").write_text(config)
    plan = bs.load({"inputs": [str(folder)], "transforms": [{"scale_": {"target": "w", "by": 2}}],
                    "output": str(tmp_path / "out")})  # fmt: skip
    assert bs.check(plan) == ()
    assert audit(plan, each=1).planted


def test_a_step_that_saves_is_not_taken_for_the_output(tmp_path: Path):
    plan = scaling(tmp_path)
    plan["transforms"].append({"save": {"path": str(tmp_path / "other.safetensors"), "alias": "model"}})
    plan["transforms"].append({"delete": {"target": "model::wte.weight"}})
    found = audit(bs.load(plan), each=1)
    assert not [line for each in found.suggestions for line in each.lines if "count" in line and "is: 23" in line]


def test_nothing_is_left_where_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(place := tmp_path / "temporary"))
    place.mkdir()
    (folder := tmp_path / "model").mkdir()
    write(folder / "model.safetensors", {"w": normal((4, 4))})
    (folder / "config.json").write_text("{}")
    plan = {
        "inputs": [str(folder)],
        "transforms": [{"scale_": {"target": "w", "by": 2}}],
        "output": str(tmp_path / "o"),
    }
    audit(bs.load(plan), each=1)
    assert list(place.iterdir()) == []
