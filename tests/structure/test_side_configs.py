"""The step `config` on other JSON files beside the weights, the template of chats among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import brainsurgery_jax as bs
from tests.hints.calls import hint_of

pytestmark = pytest.mark.usefixtures("model")

SETTINGS, JINJA = "tokenizer_config.json", "chat_template.jinja"
TEXT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}é\n{% endfor %}"
SET = {"file": SETTINGS, "patch": {"chat_template": TEXT}}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model `m` of one tensor with a tokenizer, whose template is a file of its own."""
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    save_file({"w": np.ones((2, 2), np.float32)}, "m/model.safetensors")
    put("m/config.json", {"model_type": "llama"})
    put("m/generation_config.json", {"temperature": 0.6, "top_p": 0.9})
    put(f"m/{SETTINGS}", {"model_max_length": 8})
    Path(f"m/{JINJA}").write_text("OLD")


def put(path: str, content: object) -> None:
    Path(path).write_text(json.dumps(content))


def run(*steps: dict[str, Any], output: Any = "out/", inputs: Any = ("m::m",)) -> dict[str, str]:
    """The texts of the files beside the weights that a plan of these steps `config` writes."""
    plan = {"inputs": list(inputs), "transforms": [{"config": step} for step in steps], "output": output}
    bs.load(plan).run(durable=False)
    return {path.name: path.read_text() for path in Path("out").iterdir() if path.suffix in (".json", ".jinja")}


def test_another_file_is_changed_as_the_config_is() -> None:
    files = run({"file": "generation_config.json", "remove": ["top_p"], "patch": {"temperature": 1}})
    assert json.loads(files["generation_config.json"]) == {"temperature": 1}
    assert json.loads(files["config.json"]) == {"model_type": "llama"}


def test_two_steps_change_one_file_in_turn() -> None:
    files = run({"file": SETTINGS, "patch": {"a": 1, "b": 2}}, {"file": SETTINGS, "remove": ["a"]})
    assert json.loads(files[SETTINGS]) == {"model_max_length": 8, "b": 2}


def test_a_template_is_written_where_it_was() -> None:
    files = run(SET)
    assert (files[JINJA], json.loads(files[SETTINGS])) == (TEXT, {"model_max_length": 8})


def test_a_template_that_is_a_key_stays_one() -> None:
    Path(f"m/{JINJA}").unlink()
    put(f"m/{SETTINGS}", {"chat_template": "OLD"})
    files = run(SET)
    assert JINJA not in files and json.loads(files[SETTINGS]) == {"chat_template": TEXT}


def test_a_template_with_two_homes_is_the_same_in_both() -> None:
    put(f"m/{SETTINGS}", {"chat_template": "OLDER"})
    files = run(SET)
    assert (files[JINJA], json.loads(files[SETTINGS])) == (TEXT, {"chat_template": TEXT})


def test_a_change_of_other_keys_leaves_a_template_as_it_is() -> None:
    files = run({"file": SETTINGS, "patch": {"model_max_length": 16}})
    assert (files[JINJA], json.loads(files[SETTINGS])) == ("OLD", {"model_max_length": 16})


def test_a_template_is_removed_wherever_it_lies() -> None:
    put(f"m/{SETTINGS}", {"chat_template": "OLDER"})
    files = run({"file": SETTINGS, "remove": ["chat_template"]})
    assert JINJA not in files and json.loads(files[SETTINGS]) == {}


def test_an_output_without_side_files_has_those_that_steps_changed() -> None:
    assert set(run(SET, output={"path": "out/", "sidecars": False})) >= {JINJA, SETTINGS}


def test_a_template_of_several_is_refused_where_it_has_a_file_of_its_own() -> None:
    several = [{"name": "default", "template": "A"}]
    step = {"file": SETTINGS, "patch": {"chat_template": several}}
    assert hint_of(lambda: run(step), "Write one template") == "Write one template as a text."
    assert run(SET)[JINJA] == TEXT
    Path(f"m/{JINJA}").unlink()
    files = run(step, output={"path": "out/", "overwrite": True})
    assert json.loads(files[SETTINGS])["chat_template"] == several


@pytest.mark.parametrize("file", [
    "../tokenizer_config.json", "tokenizer/../x.json", "tokenizer\\x.json", ".tokenizer.json", "tokenizer.model",
    "model.safetensors.index.json", "private.json", "/etc/tokenizer.json", "tokenizer\n.json",
])  # fmt: skip
def test_only_json_files_that_travel_are_changed(file: str) -> None:
    hint = hint_of(lambda: run({"file": file, "patch": {"a": 1}}), "Write the name of one")
    assert "`file: tokenizer_config.json`" in hint and not Path("out").exists()
    assert run(SET)[JINJA] == TEXT


def test_all_names_that_are_not_taken_are_told_at_once() -> None:
    with pytest.raises(bs.PlanError) as refused:
        run({"file": "../a.json", "patch": {"a": 1}}, {"file": "private.json", "patch": {"a": 1}})
    assert [d.message.split("'")[1] for d in refused.value.diagnostics] == ["../a.json", "private.json"]


def test_the_config_is_changed_without_naming_its_file() -> None:
    hint_of(lambda: run({"file": "config.json", "patch": {"a": 1}}), "Leave out `file`")
    assert json.loads(run({"patch": {"a": 1}})["config.json"]) == {"model_type": "llama", "a": 1}


@pytest.mark.parametrize(("file", "content"), [(SETTINGS, b"{"), (JINJA, b"\xff")])
def test_a_file_that_cannot_be_read_is_corrected(file: str, content: bytes) -> None:
    Path("m", file).write_bytes(content)
    hint_of(lambda: run(SET), "Correct its text.")
    Path("m", file).write_text("{}")
    assert run(SET)[JINJA] == TEXT


def test_a_file_that_is_not_there_is_new_with_a_note() -> None:
    step = {"config": {"file": "tokenizer_settings.json", "patch": {"a": 1}}}
    plan = bs.load({"inputs": ["m::m"], "transforms": [step], "output": "out/"})
    (note,) = [d for d in plan.explain().program.diagnostics if d.code == "config-key"]
    assert "tokenizer_settings.json is new: 'm' has no such file" in note.message
    assert run(step["config"])["tokenizer_settings.json"] == '{\n  "a": 1\n}\n'


def test_what_steps_change_is_kept_in_a_folder_alone() -> None:
    plan = bs.load({"inputs": ["m::m"], "transforms": [{"config": SET}], "output": "out.safetensors"})
    (note,) = [d for d in plan.explain().program.diagnostics if d.code == "output-config"]
    assert f"is a single file, which has no {SETTINGS}" in note.message


def test_another_tokenizer_leaves_nothing_of_what_was_changed_before() -> None:
    from brainsurgery_jax.lower.state import Extras

    changed = Extras("m", configs={SETTINGS: {}, "config.json": {}})
    assert list(changed.without_tokenizer.configs) == ["config.json"]
    assert list(Extras().borrow([changed]).configs) == [SETTINGS, "config.json"]
    assert list(Extras(tokenizer="other").borrow([changed]).configs) == ["config.json"]


@pytest.mark.parametrize("apart", [True, False])
def test_transformers_apply_the_template_that_a_plan_sets(apart: bool) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = "OLD"
    tokenizer.save_pretrained("m", save_jinja_files=apart)
    assert Path(f"m/{JINJA}").exists() or not apart
    if not apart:
        Path(f"m/{JINJA}").unlink(missing_ok=True)
    run(SET)
    loaded = transformers.AutoTokenizer.from_pretrained("out")
    said = loaded.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert said == "<user>aé\n"
