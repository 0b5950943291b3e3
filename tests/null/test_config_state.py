"""The config of an alias is part of the state: read when asked for, changed by steps, written with the output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brainsurgery_jax.lower import Publication
from tests.null.world import Headers, after, complaints, found, program

BASE = {"num_hidden_layers": 24, "rope": {"theta": 10000, "kind": "default"}, "auto_map": {"AutoModel": "m.M"}}
TUNED = {"num_hidden_layers": 12, "text_config": {"hidden_size": 8}}
BOTH = ("m::m", "t::t")


class Folders(Headers):
    """Two checkpoints in folders, each with its config; notes which side files were read."""

    def __init__(self, **configs: Any):
        super().__init__({"m": {"w": "f32[2]", "v": "f32[3]"}, "t": {"w": "f32[2]", "v": "f32[3]"}})
        given = configs or {"m": BASE, "t": TUNED}
        self.contents = {f"{name}/config.json": json.dumps(config).encode() for name, config in given.items()}
        self.asked: list[str] = []

    def side_file(self, checkpoint: str, name: str) -> bytes | None:
        self.asked.append(f"{checkpoint}/{name}")
        return super().side_file(checkpoint, name)


def written(*steps: object, output: object = "out/", inputs: tuple[str, ...] = ("m::m",), **configs: Any) -> Any:
    """The config.json that an output of these steps writes in place of a copy; None if it is copied."""
    return _config(publication(*steps, output=output, inputs=inputs, world=Folders(**configs)))


def publication(*steps: object, output: object = "out/", **rest: Any) -> Publication:
    made = program(*steps, output=output, **rest)
    assert not made.errors, made.errors
    return made.publications[-1]


def _config(made: Publication) -> Any:
    text = made.side_files.get("config.json")
    return None if text is None else json.loads(text)


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_no_config_is_read_by_steps_that_do_not_ask_for_one():
    world = Folders()
    after({"delete": {"target": "w"}}, {"copy": {"from": "v", "to": "u"}}, world=world, inputs=("m::m",))
    assert world.asked == []


# --- Changing ---------------------------------------------------------------------------------------------------------


def test_an_output_writes_the_config_as_the_last_step_left_it():
    steps = ({"config": {"patch": {"num_hidden_layers": 9}}}, {"config": {"patch": {"rope": {"theta": 5}}}})
    assert written(*steps) == BASE | {"num_hidden_layers": 9, "rope": {"theta": 5, "kind": "default"}}


def test_a_step_and_the_key_of_an_output_write_the_same_config():
    change = {"remove": ["auto_map", "rope.kind"], "patch": {"num_hidden_layers": 9}}
    assert written({"config": change}) == written(output={"path": "out/", "config": change})


def test_the_key_of_an_output_is_applied_after_the_steps():
    step = {"config": {"patch": {"num_hidden_layers": 9, "extra": 1}}}
    made = written(step, output={"path": "out/", "config": {"num_hidden_layers": 3}})
    assert (made["num_hidden_layers"], made["extra"]) == (3, 1)


def test_a_part_is_lifted_out_before_keys_are_removed_and_set():
    step = {"config": {"alias": "t", "from": "text_config", "remove": "hidden_size", "patch": {"a": 1}}}
    assert written(step, inputs=BOTH, output={"path": "out/", "alias": "t"}) == {"a": 1}


def test_a_config_that_is_changed_back_is_copied_as_it_lies():
    steps = [{"config": {"patch": {"num_hidden_layers": n}}} for n in (9, 24)]
    made = publication(*steps, world=Folders(), inputs=("m::m",))
    assert made.side_files["config.json"] == json.dumps(BASE).encode()


def test_a_config_that_steps_changed_is_written_without_other_side_files_too():
    made = written({"config": {"patch": {"a": 1}}}, output={"path": "out/", "sidecars": False})
    assert made == BASE | {"a": 1}


def test_without_a_config_a_step_creates_one():
    world = Headers({"m": {"w": "f32[2]"}})
    made = publication({"config": {"patch": {"a": 1}}}, output="out/", world=world, inputs=("m::m",))
    assert _config(made) == {"a": 1}


def test_a_single_file_cannot_keep_the_change_which_is_noted():
    (note,) = found({"config": {"patch": {"a": 1}}}, output="out.safetensors", world=Folders(), inputs=("m::m",))
    assert (note.code, note.severity) == ("output-config", "note")
    assert "'out.safetensors' is a single file" in note.message


def test_a_saved_checkpoint_has_the_config_of_its_moment():
    steps = (
        {"config": {"patch": {"a": 1}}},
        {"save": {"path": "one/"}},
        {"config": {"patch": {"a": 2}}},
        {"save": {"path": "two/"}},
    )
    made = program(*steps, world=Folders(), inputs=("m::m",))
    assert [_config(p)["a"] for p in made.publications] == [1, 2]


def test_an_effect_names_the_keys_that_changed():
    step = {"config": {"patch": {"num_hidden_layers": 24, "rope": {"theta": 5}}, "remove": ["auto_map"]}}
    (effect,) = program(step, world=Folders(), inputs=("m::m",)).effects
    assert effect.configured == ("m::rope.theta", "m::auto_map")


def test_after_a_dry_run_the_config_is_as_it_was():
    steps = ({"set": {"dry-run": True}}, {"config": {"patch": {"a": 1}}}, {"set": {"dry-run": False}})
    assert written(*steps) is None


# --- Asserting --------------------------------------------------------------------------------------------------------


def test_an_assert_sees_what_earlier_steps_changed():
    steps = (
        {"assert": {"config": {"of": "num_hidden_layers", "is": 24}}},
        {"config": {"patch": {"num_hidden_layers": 9}}},
        {"assert": {"config": {"of": "num_hidden_layers", "is": 9}}},
    )
    assert complaints(*steps, world=Folders(), inputs=("m::m",)) == []


def test_of_a_config_step_that_failed_nothing_is_asserted():
    steps = ({"config": {"remove": ["nowhere"]}}, {"assert": {"config": {"of": "num_hidden_layers", "is": 3}}})
    assert complaints(*steps, world=Folders(), inputs=("m::m",), output="out/") == ["output-config"]


def test_of_a_config_step_that_is_misspelt_nothing_is_asserted():
    from brainsurgery_jax import api
    from brainsurgery_jax.lower import lower, start

    steps = [{"config": {"patsh": {"a": 1}}}, {"assert": {"config": {"of": "num_hidden_layers", "is": 3}}}]
    plan = api.load({"inputs": ["m::m"], "transforms": steps})
    world = Folders()
    assert [d.code for d in plan.problems] == ["key-unknown"]
    assert lower(start(plan.data, world), plan.data, world).diagnostics == ()


def test_the_note_on_a_config_that_the_tensors_contradict_is_settled_by_a_step():
    world = Headers({"m": {"model.embed_tokens.weight": "f32[10,8]", "model.norm.weight": "f32[8]",
                           "model.layers.0.mlp.down_proj.weight": "f32[8,4]"}})  # fmt: skip
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 12, "num_hidden_layers": 1}
    world.contents = {"m/config.json": json.dumps(config).encode()}
    stale, true = ({"config": {"patch": {"vocab_size": size}}} for size in (11, 10))
    assert "config-differs" in complaints(stale, world=world, output="out/", inputs=("m::m",))
    assert "config-differs" not in complaints(stale, true, world=world, output="out/", inputs=("m::m",))


# --- Copying ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["copy", "move"])
def test_a_whole_model_takes_its_config_along(op: str):
    steps = (
        {"config": {"alias": "t", "patch": {"num_hidden_layers": 9}}},
        {"prefixes": {"mode": "add", "alias": "new"}},
        {op: {"from": "t::(.*)", "to": "new::model.\\1"}},
    )
    made = written(*steps, inputs=BOTH, output={"path": "out/", "alias": "new"})
    assert made == TUNED | {"num_hidden_layers": 9}


def test_the_config_of_a_copy_is_its_own():
    steps = (
        {"prefixes": {"mode": "add", "alias": "new"}},
        {"copy": {"from": "m::(.*)", "to": "new::\\1"}},
        {"config": {"alias": "new", "patch": {"a": 1}}},
        {"assert": {"config": {"of": "m::a", "is": None}}},
        {"config": {"alias": "m", "patch": {"b": 1}}},
        {"assert": {"config": {"of": "new::b", "is": None}}},
    )
    assert complaints(*steps, world=Folders(), inputs=BOTH) == []


def test_a_model_that_is_put_together_has_the_config_of_the_first_input():
    steps = (
        {"prefixes": {"mode": "add", "alias": "new"}},
        {"copy": {"from": "t::w", "to": "new::w"}},
        {"config": {"alias": "new", "patch": {"a": 1}}},
    )
    assert written(*steps, inputs=BOTH, output={"path": "out/", "alias": "new"}) == BASE | {"a": 1}


def test_an_alias_with_another_name_keeps_its_config():
    steps = (
        {"config": {"alias": "t", "patch": {"a": 1}}},
        {"prefixes": {"mode": "rename", "from": "t", "to": "u"}},
        {"assert": {"config": {"of": "u::a", "is": 1}}},
    )
    assert complaints(*steps, world=Folders(), inputs=BOTH) == []


# --- Adapters ---------------------------------------------------------------------------------------------------------


def test_of_an_adapter_its_own_config_is_changed():
    world = Headers({"ad": {"w": "f32[2]"}})
    world.contents = {"ad/adapter_config.json": json.dumps({"r": 8}).encode()}
    made = publication({"config": {"patch": {"r": 4}}}, output="out/", world=world, inputs=("ad::ad",))
    assert json.loads(made.side_files["adapter_config.json"]) == {"r": 4}


# --- What is refused, and what is noted -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "code", "text"),
    [
        ({}, "key-missing", "config: give at least one of patch, remove and from"),
        ({"remove": ["rope.kin"]}, "output-config", "config.remove: the config has no key 'rope.kin'. Did you mean"),
        ({"from": "num_hidden_layers"}, "output-config", "config.from: the config has no part 'num_hidden_layers', "),
        ({"patch": {"a": 1}, "alias": "mm"}, "alias-unknown", "config.alias: unknown alias 'mm'. Did you mean 'm'?"),
    ],
)
def test_what_cannot_be_changed_is_refused_at_its_key(step: object, code: str, text: str):
    (problem,) = found({"config": step}, world=Folders(), inputs=("m::m",))
    assert problem.code == code
    assert problem.message.startswith(text)


def test_with_several_aliases_the_step_must_name_one():
    (problem,) = found({"config": {"patch": {"a": 1}}}, world=Folders(), inputs=BOTH)
    assert (problem.code, problem.hint) == ("ref-no-alias", "Add `alias: NAME`.")


def test_a_key_that_looks_misspelt_is_noted():
    (note,) = found({"config": {"patch": {"num_hiden_layers": 9}}}, world=Folders(), inputs=("m::m",))
    assert (note.code, note.severity) == ("config-key", "note")
    assert "Did you mean 'num_hidden_layers'?" in note.message


@pytest.mark.parametrize("way", ["a step", "the output"])
def test_a_number_that_becomes_a_truth_value_is_a_change(way: str):
    step, output = ({"config": {"patch": {"flag": True}}}, "out/") if way == "a step" else (
        {"assert": {"exists": ".*"}}, {"path": "out/", "config": {"flag": True}})  # fmt: skip
    assert written(step, output=output, m={"flag": 1})["flag"] is True
