"""What `check` notes of outputs whose config.json says otherwise than their tensors, and what its remedies do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import Diagnostic, PlanError
from tests.families.models import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("llama", "gemma3", "mixtral", "llava"):
        config, model, sizes = CLASSES[name]
        getattr(transformers, model)(getattr(transformers, config)(**sizes)).save_pretrained(folder / name)
    return folder


def plan(source: Path, *steps: Any, out: str = "out/", **output: Any) -> dict[str, Any]:
    return {"inputs": [str(source)], "transforms": [*steps], "output": {"path": out, **output}}


def noted(plan: dict[str, Any]) -> list[Diagnostic]:
    return [d for d in bs.check(bs.load(plan)) if d.code == "config-differs"]


def pasted(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with what its first note says to write in the output."""
    (text,) = re.findall(r"`((?:config|options): .*)` in the output", noted(plan)[0].hint)
    return plan | {"output": plan["output"] | yaml.safe_load(text)}


def loads_whole(cls: Any, folder: str) -> bool:
    """Whether a class of transformers finds every tensor that it wants, and no other."""
    _, told = cls.from_pretrained(folder, output_loading_info=True)
    return not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


DELETE_HEAD = {"delete": {"target": r"lm_head\.weight|model\.layers\.2\..*"}}


def test_a_model_that_is_only_copied_draws_no_note(models: Path, here: Path) -> None:
    assert [noted(plan(models / name)) for name in ("llama", "gemma3", "mixtral", "llava")] == [[]] * 4


def test_a_folder_may_be_named_with_a_slash(models: Path, here: Path) -> None:
    without, within = (plan(models / "llama", DELETE_HEAD) for _ in range(2))
    within["inputs"] = [f"{models / 'llama'}/"]
    assert [n.message for n in noted(within)] == [n.message for n in noted(without)] != []


def test_every_difference_is_noted_with_one_change_that_settles_all(models: Path, here: Path) -> None:
    stale = plan(models / "llama", DELETE_HEAD)
    layers, head = noted(stale)
    assert "says num_hidden_layers 3, but the tensors have 2" in layers.message
    assert "says tie_word_embeddings false, but there is no 'lm_head.weight'" in head.message
    assert layers.hint == head.hint
    assert (layers.severity, head.severity) == ("note", "note")
    assert pasted(stale)["output"]["config"] == {"num_hidden_layers": 2, "tie_word_embeddings": True}


def test_what_the_note_says_makes_a_model_that_loads(models: Path, here: Path) -> None:
    mended = pasted(plan(models / "llama", DELETE_HEAD))
    assert noted(mended) == []
    bs.load(mended).run(durable=False)
    assert loads_whole(transformers.LlamaForCausalLM, "out")


def test_the_change_is_added_to_what_the_output_changes_already(models: Path, here: Path) -> None:
    stale = plan(models / "llama", DELETE_HEAD, config={"remove": ["use_cache"], "patch": {"num_hidden_layers": 9}})
    mended = pasted(stale)
    assert mended["output"]["config"] == {
        "remove": ["use_cache"], "patch": {"num_hidden_layers": 2, "tie_word_embeddings": True},
    }  # fmt: skip
    assert noted(mended) == []


def test_a_part_of_a_config_is_changed_in_its_place(models: Path, here: Path) -> None:
    step = {"delete": {"target": r".*vision_tower.*\.layers\.2\..*"}}
    mended = pasted(plan(models / "llava", step))
    assert mended["output"]["config"] == {"vision_config": {"num_hidden_layers": 2}}
    assert noted(mended) == []


def test_the_moves_of_a_note_number_the_layers_anew(models: Path, here: Path) -> None:
    stale = plan(models / "gemma3", {"delete": {"target": r"model\.layers\.(1|4)\..*"}})
    gap = next(d for d in noted(stale) if "no 'model.layers.1'" in d.message)
    steps = [yaml.safe_load(line)[0] for line in gap.hint.splitlines()[1:]]
    assert len(steps) == 2
    mended = pasted(stale | {"transforms": [*stale["transforms"], *steps]})
    assert noted(mended) == []
    kinds = json.loads((models / "gemma3" / "config.json").read_text())["layer_types"]
    assert mended["output"]["config"]["layer_types"] == [kinds[layer] for layer in (0, 2, 3, 5, 6)]
    bs.load(mended).run(durable=False)
    assert loads_whole(transformers.Gemma3ForCausalLM, "out")


def test_a_cast_of_the_whole_model_leaves_nothing_to_note(models: Path, here: Path) -> None:
    cast = plan(models / "llama", {"cast_": {"target": ".*", "to": "bfloat16"}})
    assert noted(cast) == []
    bs.load(cast).run(durable=False)
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"


def test_explain_and_run_note_the_same_as_check(models: Path, here: Path) -> None:
    stale = plan(models / "llama", DELETE_HEAD)
    told = noted(stale)
    explained = bs.load(stale).explain().program.diagnostics
    report = bs.load(stale).run(durable=False)
    assert [d.message for d in explained] == [d.message for d in report.notes] == [d.message for d in told]


def test_a_folder_that_a_step_saves_is_held_against_its_config_too(models: Path, here: Path) -> None:
    steps = [DELETE_HEAD, {"save": "out/"}]
    layers, _ = noted({"inputs": [str(models / "llama")], "transforms": steps})
    assert layers.message.startswith("save: out/: config.json says num_hidden_layers 3")
    assert "Write `config: {num_hidden_layers: 2, tie_word_embeddings: true}` in the step `save`" in layers.hint


@pytest.mark.parametrize("output", [{"path": "out.safetensors"}, {"path": "out/", "sidecars": False}])
def test_without_a_config_beside_it_nothing_is_noted(models: Path, here: Path, output: dict[str, Any]) -> None:
    assert noted(plan(models / "llama", DELETE_HEAD) | {"output": output}) == []


def test_a_mistake_in_a_step_draws_no_note_on_what_it_would_have_made(models: Path, here: Path) -> None:
    found = bs.check(bs.load(plan(models / "llama", {"delete": {"target": "lm_hed.weight"}})))
    assert [d.code for d in found] == ["no-match"]


def test_other_formats_that_keep_the_names_are_held_against_the_config(models: Path, here: Path) -> None:
    assert len(noted(plan(models / "llama", DELETE_HEAD, format="orbax"))) == 2


def test_a_stale_config_is_no_mistake(models: Path, here: Path) -> None:
    bs.load(plan(models / "llama", DELETE_HEAD)).check()
    with pytest.raises(PlanError, match="no tensor matches"):
        bs.load(plan(models / "llama", {"delete": {"target": "x"}})).check()


# --- A part of a model ------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(models: Path, here: Path) -> list[str]:
    """The shards of a model."""
    model = transformers.LlamaForCausalLM.from_pretrained(models / "llama")
    model.save_pretrained("sharded", max_shard_size="20KB")
    return sorted(map(str, Path("sharded").glob("*.safetensors")))


def test_of_a_single_shard_no_smaller_model_is_proposed(sharded: list[str]) -> None:
    (note,) = noted(plan(Path(sharded[1]), {"scale_": {"target": ".*", "by": 2}}))
    assert f"'{Path(sharded[1]).name}' is one of {len(sharded)} shards" in note.message
    assert "num_hidden_layers" not in note.message + note.hint


def test_of_some_shards_named_singly_no_smaller_model_is_proposed(sharded: list[str]) -> None:
    some = sharded[:3]
    inputs = [f"a{i}::{path}" for i, path in enumerate(some)]
    steps = [{"move": {"from": f"a{i}::(.*)", "to": r"a0::\1"}} for i in range(1, len(some))]
    (note,) = noted({"inputs": inputs, "transforms": steps, "output": {"path": "out/", "alias": "a0"}})
    assert f"are {len(some)} of {len(sharded)} shards" in note.message
    assert note.hint == "Name the folder with all shards as the input to write the whole model: 'sharded'."


def test_the_folder_that_the_note_on_a_shard_names_is_the_whole_model(sharded: list[str]) -> None:
    (note,) = noted(plan(Path(sharded[1])))
    (folder,) = re.findall(r"'(.*)'", note.hint)
    whole = plan(Path(folder))
    assert noted(whole) == []
    bs.load(whole).run(durable=False)
    assert loads_whole(transformers.LlamaForCausalLM, "out")


def test_all_shards_named_one_by_one_are_no_part(sharded: list[str]) -> None:
    inputs = [f"a{i}::{path}" for i, path in enumerate(sharded)]
    steps = [{"move": {"from": f"a{i}::(.*)", "to": r"a0::\1"}} for i in range(1, len(sharded))]
    steps.append({"delete": {"target": r"a0::model\.layers\.2\..*"}})
    (note,) = noted({"inputs": inputs, "transforms": steps, "output": {"path": "out/", "alias": "a0"}})
    assert "says num_hidden_layers 3, but the tensors have 2" in note.message
