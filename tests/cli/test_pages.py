"""What people read: `check`, `explain`, `inspect`, `ops` and `demo`, as text and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write
from tests.cli.conftest import Command

SNAPSHOTS = Path(__file__).parent / "snapshots"


def snapshot(name: str, found: str) -> None:
    """Compare with the stored text; delete the file to have it written anew, then read the difference."""
    path = SNAPSHOTS / f"{name}.txt"
    if not path.exists():
        path.write_text(found, encoding="utf-8")
        pytest.fail(f"{path.name} was not there and is written now: read it, and run again")
    assert found == path.read_text(encoding="utf-8")


def test_check_tells_what_a_right_plan_reads_and_writes(command: Command):
    done = command("check", "plan.yaml")
    assert done == (0, "ok: 2 steps, reads base (3 tensors), writes out.safetensors (3 tensors, 80 B)\n", "")


def test_check_tells_all_mistakes_in_the_order_of_the_plan_and_counts_them(command: Command, place: Path):
    # Headers tell the first, the form of the plan alone the second.
    (place / "two.yaml").write_text(
        "inputs: [base.safetensors]\ntransforms: [{assert: {exists: nothing}}]\noutptu: x\n"
    )
    done = command("check", "two.yaml")
    assert (done.code, done.out) == (1, "")
    assert re.findall(r"\[([a-z-]+)\]$", done.err, re.MULTILINE) == ["assert-failed", "key-unknown"]
    assert done.err.splitlines()[-1] == "2 mistakes"


def test_check_gives_json_with_places(command: Command):
    done = command("check", "plan.yaml", "transforms[1].assert.exists=nothing", "--json")
    found = json.loads(done.out)
    assert (done.code, found["schema_version"], found["ok"]) == (1, 1, False)
    place = {"file": "override 'transforms[1].assert.exists=nothing'", "line": 1, "column": 22}
    assert found["diagnostics"][0]["place"] == place


def test_check_of_no_yaml_at_all_gives_json(command: Command, place: Path):
    (place / "bad.yaml").write_text("a: [")
    assert json.loads(command("check", "bad.yaml", "--json").out)["ok"] is False


def test_explain_is_readable(command: Command, place: Path):
    steps = [
        {"phlora": {"target": r"(h\.\d)\.w", "target_a": r"\1.a", "target_b": r"\1.b", "rank": {"energy": 0.9}}},
        {"scale_": {"target": "ids", "by": 2}},
        {"assert": {"not": {"iszero": "ids"}}},
        {"assert": {"exists": "ids"}},
        "dump",
    ]
    (place / "long.yaml").write_text(json.dumps({"inputs": ["base.safetensors"], "transforms": steps, "output": "out"}))
    found = command("explain", "long.yaml").out
    snapshot("explain", re.sub(r"[^,]+ in all on \d+ threads?", " SIZE in all on THREADS", found))


def test_explain_names_everything_when_asked(command: Command, place: Path):
    write(place / "base.safetensors", {f"h.{i}.w": np.zeros(1, np.float32) for i in range(6)})
    plan = "transforms=[{delete: {target: '.*[0-4].*'}}]"
    assert "and 2 more" in command("explain", "plan.yaml", plan).out
    assert "more" not in command("explain", "plan.yaml", plan, "--all").out


def test_explain_gives_json(command: Command):
    found = json.loads(command("explain", "plan.yaml", "--json").out)
    assert found["schema_version"] == 1
    assert [s["op"] for s in found["steps"]] == ["move", "assert"]
    assert found["bytes_computed"] == 0


def test_explain_of_a_wrong_plan_is_its_mistakes(command: Command):
    done = command("explain", "plan.yaml", "transforms[1].assert.exists=nothing")
    assert (done.code, done.out) == (1, "")


def test_inspect_folds_equal_layers(command: Command):
    snapshot("inspect", command("inspect", "base.safetensors").out)


def test_inspect_draws_the_whole_tree(command: Command):
    assert "[0-1]" not in command("inspect", "base.safetensors", "--format", "tree").out


def test_inspect_gives_statistics(command: Command):
    done = command("inspect", "base.safetensors", "--stats", "--json")
    ids = json.loads(done.out)["tensors"]["ids"]
    assert ids == {"shape": [4], "dtype": "int64", "bytes": 32, "min": 0.0, "max": 3.0, "mean": 1.5,
                   "std": 1.25**0.5, "norm": 14**0.5, "zeros": 1, "nans": 0, "infs": 0}  # fmt: skip


def test_inspect_says_nan_in_json_that_every_reader_accepts(command: Command, place: Path):
    write(place / "nan.safetensors", {"x": np.array([1, np.nan], np.float32)})
    assert json.loads(command("inspect", "nan.safetensors", "--stats", "--json").out)["tensors"]["x"]["max"] == "nan"


def test_inspect_of_a_target_that_matches_nothing_is_1(command: Command):
    done = command("inspect", "base.safetensors", "--target", "h.0.x")
    assert done.code == 1
    assert "Did you mean 'h.0.w'?" in done.err


def test_inspect_of_a_bad_pattern_is_2(command: Command):
    assert command("inspect", "base.safetensors", "--target", "(").code == 2


def test_inspect_of_an_empty_checkpoint_answers(command: Command, place: Path):
    write(place / "empty.safetensors", {})
    assert "0 tensors" in command("inspect", "empty.safetensors").out


def test_ops_lists_every_op_and_operator(command: Command):
    listed = set(re.findall(r"^  (\S+)", command("ops").out, re.MULTILINE))
    everything = json.loads(command("ops", "--json").out)
    assert listed == {o["name"] for o in (*everything["ops"], *everything["asserts"])}


def test_the_page_of_an_op_is_readable(command: Command):
    snapshot("ops_scale", command("ops", "scale").out)


def test_an_operator_of_assert_has_a_page_under_both_names(command: Command):
    assert command("ops", "assert.equal") == command("ops", "equal")


def test_every_op_has_a_page(command: Command):
    everything = json.loads(command("ops", "--json").out)
    assert all(o["doc"] and o["keys"] is not None for o in everything["ops"])


def test_an_unknown_op_is_2_with_the_nearest_one(command: Command):
    done = command("ops", "phlorra")
    assert done.code == 2
    assert "Did you mean 'phlora'?" in done.err


def test_schema_prints_json_schema(command: Command):
    assert json.loads(command("schema").out)["$schema"].endswith("2020-12/schema")


def test_the_installed_schema_is_the_one_that_is_printed(command: Command):
    (path,) = command("schema", "--where").out.splitlines()
    assert Path(path).is_absolute()
    assert Path(path).read_text(encoding="utf-8") == command("schema").out, "`make schema` writes it"


def test_demo_runs_to_its_end(command: Command):
    done = command("demo")
    assert (done.code, "What next:" in done.out) == (0, True)
    assert done.err == "wrote small/: 32 tensors, 123.5 KB, with config.json\n"


def test_demo_leaves_its_files_where_they_are_wanted(command: Command, place: Path):
    assert command("demo", "--keep", "kept").code == 0
    assert sorted(p.name for p in (place / "kept").iterdir()) == ["base", "plan.yaml", "small"]
    assert (place / "kept/small/config.json").exists()


def test_demo_refuses_a_folder_in_use(command: Command, place: Path):
    done = command("demo", "--keep", ".")
    assert done.code == 3
    assert "is not empty" in done.err
