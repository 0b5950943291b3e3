"""`save`, `load` and `output` while a plan is lowered: what is written, what a later load sees, what is refused."""

from __future__ import annotations

import json

import pytest

from tests.null.world import MODEL, Headers, after, complaints, found, program, tensor

TWO = ("m::m.safetensors", "o::o.safetensors")


def two() -> Headers:
    return Headers({"m.safetensors": MODEL, "o.safetensors": {"w": "f32[4,3]"}})


def test_a_load_of_a_path_that_the_plan_saves_sees_what_was_saved():
    state = after({"scale_": {"target": "w", "by": 2}}, {"save": "snap"}, {"load": {"path": "snap", "alias": "s"}})
    assert tensor(state, "w", "s") is tensor(state, "w")
    assert list(state.spaces["s"].names) == list(MODEL)


def test_a_saved_checkpoint_does_not_follow_later_steps():
    state = after({"save": "snap"}, {"delete": {"target": "w"}}, {"load": {"path": "snap", "alias": "s"}})
    assert "w" in state.spaces["s"].names


@pytest.mark.parametrize("path", ["snap/model.safetensors", "."])
def test_a_load_inside_or_around_a_saved_path_is_refused(path: str):
    save = {"save": "./snap" if path == "." else "snap"}
    assert complaints(save, {"load": {"path": path, "alias": "s"}}) == ["load-inside-save"]


def test_two_saves_to_one_path_are_refused():
    assert complaints({"save": "snap"}, {"save": "snap/"}) == ["output-twice"]


def test_of_two_saves_to_one_path_the_one_that_overwrites_is_kept():
    second = {"save": {"path": "snap", "overwrite": True}}
    (written,) = program({"save": "snap"}, {"delete": {"target": "w"}}, second).publications
    assert "w" not in written.tensors


def test_a_save_inside_another_is_refused():
    assert complaints({"save": "snap"}, {"save": "snap/x.safetensors"}) == ["output-inside"]


def test_an_output_onto_a_saved_path_is_refused():
    assert complaints({"save": "snap"}, output="snap") == ["output-twice"]


def test_an_output_inside_a_saved_folder_is_refused():
    assert complaints({"save": "snap"}, output="snap/x.safetensors") == ["output-inside"]


def test_a_single_tensor_is_saved_under_its_own_name():
    (written,) = program({"save": {"path": "b.safetensors", "target": "b"}}).publications
    assert list(written.tensors) == ["b"]


def test_saves_come_before_the_output():
    made = program({"save": "a.safetensors"}, output="b.safetensors").publications
    assert [p.path for p in made] == ["a.safetensors", "b.safetensors"]


def test_the_only_alias_is_written_though_no_step_wrote_to_it():
    (written,) = program(output="out.safetensors").publications
    assert list(written.tensors) == list(MODEL)


def test_of_several_aliases_the_one_that_steps_wrote_to_is_written():
    step = {"copy": {"from": "m::w", "to": "o::copied"}}
    (written,) = program(step, output="out.safetensors", inputs=TWO, world=two()).publications
    assert list(written.tensors) == ["w", "copied"]


def test_an_output_that_could_be_either_of_two_aliases_is_refused():
    steps = ({"scale_": {"target": "m::w", "by": 2}}, {"scale_": {"target": "o::w", "by": 2}})
    (refused,) = found(*steps, output="out.safetensors", inputs=TWO, world=two())
    assert refused.code == "output-ambiguous"
    assert "'m', 'o': steps wrote to each of them" in refused.message


def test_an_alias_that_was_removed_is_no_candidate():
    steps = ({"scale_": {"target": "o::w", "by": 2}}, {"prefixes": {"mode": "remove", "alias": "o"}})
    (written,) = program(*steps, output="out.safetensors", inputs=TWO, world=two()).publications
    assert list(written.tensors) == list(MODEL)


def test_a_renamed_alias_is_written_under_its_new_name():
    steps = ({"prefixes": {"mode": "rename", "from": "o", "to": "p"}}, {"scale_": {"target": "p::w", "by": 2}})
    (written,) = program(*steps, output={"path": "out.safetensors", "alias": "p"}, inputs=TWO, world=two()).publications
    assert list(written.tensors) == ["w"]


def test_every_destination_is_looked_at_before_anything_runs():
    world = Headers({"m.safetensors": MODEL})
    program({"save": "snap"}, output="out.safetensors", world=world)
    assert world.destinations == ["snap", "out.safetensors"]


def test_a_folder_is_cut_into_shards_and_a_file_is_not():
    folder, file = program({"save": "snap/"}, output="out.safetensors").publications
    assert (folder.directory, folder.shard_bytes) == (True, 5 << 30)
    assert (file.directory, file.shard_bytes) == (False, None)


def test_a_dtype_that_safetensors_lacks_is_refused():
    (refused,) = found({"cast_": {"target": "w", "to": "complex128"}}, output="out.safetensors")
    assert refused.code == "dtype-unsavable"
    assert "tensor 'w': safetensors has no dtype complex128" in refused.message


# --- config.json -----------------------------------------------------------------------------------------------------

CONFIG = b'{"n_layer": 12, "rope": {"theta": 1e4, "kind": "x"}, "keep": [1]}'


def with_config(content: bytes = CONFIG) -> Headers:
    world = Headers({"m.safetensors": MODEL})
    world.contents["m.safetensors/config.json"] = content
    return world


def patched(config: dict[str, object], content: bytes = CONFIG) -> object:
    (written,) = program(output={"path": "out", "config": config}, world=with_config(content)).publications
    return json.loads(written.side_files["config.json"])


def test_a_config_patch_changes_what_it_names_and_keeps_the_rest():
    made = patched({"n_layer": 9, "rope": {"kind": "y"}, "new": None})
    assert made == {"n_layer": 9, "rope": {"theta": 1e4, "kind": "y"}, "keep": [1], "new": None}


def test_a_list_in_a_config_patch_replaces_the_list():
    assert patched({"keep": []}) == {"n_layer": 12, "rope": {"theta": 1e4, "kind": "x"}, "keep": []}


def test_a_config_patch_makes_the_file_where_there_was_none():
    (written,) = program(output={"path": "out", "config": {"n_layer": 9}}).publications
    assert json.loads(written.side_files["config.json"]) == {"n_layer": 9}


def test_a_config_patch_that_changes_nothing_leaves_the_file_as_it_was_to_the_byte():
    (written,) = program(output={"path": "out", "config": {"n_layer": 12}}, world=with_config()).publications
    assert written.side_files["config.json"] == CONFIG


def test_a_config_patch_of_a_single_file_is_refused():
    (refused,) = found(output={"path": "out.safetensors", "config": {"n_layer": 9}})
    assert refused.code == "output-config"
    assert "is a single file, which has no config.json" in refused.message


def test_a_config_that_is_not_json_is_refused_before_anything_is_written():
    (refused,) = found(output={"path": "out", "config": {"n_layer": 9}}, world=with_config(b"{n_layer: 12}"))
    assert (refused.code, "is not JSON" in refused.message) == ("output-config", True)


# --- A change in full -------------------------------------------------------------------------------------------------

NESTED = b'{"model_type": "vlm", "auto_map": {"AutoModel": "x.Y"}, "text_config": {"n_layer": 12, "rope": {"a": 1}}}'


def test_keys_are_removed_at_any_depth():
    made = patched({"remove": ["auto_map", "text_config.rope.a"]}, NESTED)
    assert made == {"model_type": "vlm", "text_config": {"n_layer": 12, "rope": {}}}


def test_a_part_is_lifted_out_and_changed():
    made = patched({"from": "text_config", "remove": ["rope"], "patch": {"n_layer": 9, "model_type": "lm"}}, NESTED)
    assert made == {"n_layer": 9, "model_type": "lm"}


def test_a_key_that_is_removed_and_set_is_replaced_as_a_whole():
    made = patched({"remove": ["text_config"], "patch": {"text_config": {"b": 2}}}, NESTED)
    assert made == {"model_type": "vlm", "auto_map": {"AutoModel": "x.Y"}, "text_config": {"b": 2}}


def test_a_key_with_a_dot_in_it_is_found():
    assert patched({"remove": ["task.a"]}, b'{"task.a": 1, "task": {"b": 2}}') == {"task": {"b": 2}}


@pytest.mark.parametrize("key", ["patch", "remove", "from"])
def test_a_key_of_the_config_that_is_called_like_one_of_the_change_is_set_by_patch(key: str):
    assert patched({"patch": {key: 1}}, f'{{"{key}": 0, "n": 1}}'.encode()) == {key: 1, "n": 1}
    assert patched({key: 1, "n": 2}, f'{{"{key}": 0, "n": 1}}'.encode()) == {key: 1, "n": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remove": ["auto_mapp"]}, "remove: the config has no key 'auto_mapp'. Did you mean 'auto_map'?"),
        ({"remove": ["text_config.ropes"]}, "has no key 'text_config.ropes'. Did you mean 'text_config.rope'?"),
        ({"from": "vision_config"}, "from: the config has no part 'vision_config'"),
        ({"from": "model_type"}, "from: the config has no part 'model_type', which is a single value"),
        ({"remove": ["auto_map"], "n_layer": 9}, "'remove' stands beside 'n_layer'"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(change: dict[str, object], message: str):
    (refused,) = found(output={"path": "out", "config": change}, world=with_config(NESTED))
    assert (refused.code, refused.severity) == ("output-config", "error")
    assert message in refused.message


def test_a_mapping_that_is_set_to_null_is_told_how_to_be_removed():
    (note,) = found(output={"path": "out", "config": {"auto_map": None}}, world=with_config(NESTED))
    assert (note.code, note.severity) == ("config-key", "note")
    assert "`config: {remove: [auto_map]}`" in note.hint
    assert found(output={"path": "out", "config": {"model_type": None}}, world=with_config(NESTED)) == ()


def test_the_dtype_of_a_part_follows_a_cast_too():
    content = '{"dtype": "float32", "text_config": {"dtype": "float32", "n": 1}, "vision_config": {"dtype": "float16"}}'
    parts = {"text_config": {"dtype": "bfloat16", "n": 1}, "vision_config": {"dtype": "float16"}}
    assert cast_model(content) == {"config.json": {"dtype": "bfloat16", **parts}}


def told_of_config(patch: dict[str, object], content: bytes) -> list[str]:
    told = found(output={"path": "out", "config": patch}, world=with_config(content))
    assert {(d.code, d.severity) for d in told} <= {("config-key", "note")}
    return [d.message for d in told]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("num_hiden_layers", "num_hidden_layers"),
        ("num_hidden_layer", "num_hidden_layers"),
        ("numHiddenLayers", "num_hidden_layers"),
        ("rope_tehta", "rope_theta"),
    ],
)
def test_a_config_key_that_seems_misspelt_is_told_with_the_one_that_is_meant(key: str, near: str):
    message = f"output.config: '{key}' is added: config.json has no such key. Did you mean '{near}'?"
    assert told_of_config({key: 1}, b'{"num_hidden_layers": 2, "rope_theta": 1}') == [message]


@pytest.mark.parametrize("key", ["bos_token_id", "num_key_value_heads", "hidden_act", "num_local_experts", "q_dim"])
def test_a_config_key_that_is_only_related_to_others_is_new(key: str):
    have = b'{"eos_token_id": 2, "num_attention_heads": 2, "hidden_size": 8, "num_experts": 4, "k_dim": 1}'
    assert told_of_config({key: 1}, have) == []


def test_a_config_key_that_is_there_is_told_of_never():
    assert told_of_config({"n_layer": 1, "n_layers": 1}, b'{"n_layer": 2, "n_layers": 2}') == []


def test_a_misspelt_key_within_a_config_is_told_with_its_path():
    (message,) = told_of_config({"rope": {"thetta": 1}}, CONFIG)
    assert message.startswith("output.config: 'rope.thetta' is added")
    assert message.endswith("Did you mean 'theta'?")


def cast_model(content: str, to: str = "bfloat16") -> dict[str, object]:
    world = Headers({"m.safetensors": {"w": "f32[2]", "ids": "i64[2]"}})
    world.contents["m.safetensors/config.json"] = content.encode()
    (written,) = program({"cast_": {"target": "w", "to": to}}, output="out", world=world).publications
    return {name: json.loads(text) for name, text in written.side_files.items()}


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_dtype_in_the_config_follows_a_cast_of_the_whole_model(key: str):
    assert cast_model(f'{{"{key}": "float32"}}') == {"config.json": {key: "bfloat16"}}


@pytest.mark.parametrize("content", ['{"torch_dtype": "float16"}', '{"n": 1}', "{not json"])
def test_a_config_that_named_another_dtype_or_none_is_copied_as_it_is(content: str):
    assert cast_model(content) == {}


def test_a_cast_to_a_dtype_that_models_are_not_loaded_in_leaves_the_config():
    assert cast_model('{"torch_dtype": "float32"}', "float8_e4m3fn") == {}
