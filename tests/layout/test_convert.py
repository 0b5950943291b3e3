"""`convert`: what it recognises, what it refuses, what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.cli.convert import options_of
from brainsurgery_jax.conversion import NOT_KNOWN, verification
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store import publishing
from brainsurgery_jax.store.atomic import Staged, publish
from brainsurgery_jax.store.detect import open_source
from tests.checkpoints import bits, normal, read, write

GPT2 = {"model_type": "gpt2", "n_embd": 4, "n_layer": 2, "n_head": 2, "n_positions": 3, "vocab_size": 5}
LLAMA = {
    "model_type": "llama", "hidden_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4,
    "num_key_value_heads": 1, "intermediate_size": 5, "vocab_size": 7, "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "llama3"},
}  # fmt: skip


def gpt2() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (5, 4), "wpe.weight": (3, 4)}
    for i in range(2):
        h = {"ln_1.weight": (4,), "ln_1.bias": (4,), "attn.c_attn.weight": (4, 12), "attn.c_attn.bias": (12,),
             "attn.c_proj.weight": (4, 4), "attn.c_proj.bias": (4,), "ln_2.weight": (4,), "ln_2.bias": (4,),
             "mlp.c_fc.weight": (4, 16), "mlp.c_fc.bias": (16,), "mlp.c_proj.weight": (16, 4),
             "mlp.c_proj.bias": (4,)}  # fmt: skip
        shapes |= {f"h.{i}.{name}": shape for name, shape in h.items()}
    return made(shapes | {"ln_f.weight": (4,), "ln_f.bias": (4,)})


def llama() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (7, 6), "model.norm.weight": (6,)}
    for i in range(2):
        layer = {"input_layernorm": (6,), "post_attention_layernorm": (6,), "self_attn.q_proj": (8, 6),
                 "self_attn.k_proj": (4, 6), "self_attn.v_proj": (4, 6), "self_attn.o_proj": (6, 8),
                 "mlp.gate_proj": (5, 6), "mlp.up_proj": (5, 6), "mlp.down_proj": (6, 5)}  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return made(shapes)


def made(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: normal(shape, seed=at) for at, (name, shape) in enumerate(shapes.items())}


def model(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None) -> str:
    folder.mkdir()
    write(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert all(bits(found[name]) == bits(x) for name, x in wanted.items())


def convert(source: str, target: Path, **wishes: Any) -> dict[str, np.ndarray]:
    """What a conversion to safetensors files writes."""
    bs.convert(source, str(target), durable=False, **wishes)
    return read(target)


# --- There and back ---------------------------------------------------------------------------------------------------


def test_the_only_layout_for_a_model_is_recognised_and_so_is_the_way_back(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    bs.convert(source, str(tmp_path / "flax"), verify=True, durable=False)
    assert bs.open(str(tmp_path / "flax")).avals["params.h.1.attn.c_attn.kernel"].shape == (4, 12)
    bs.convert(str(tmp_path / "flax"), str(tmp_path / "back"), verify=True, durable=False)
    same(read(tmp_path / "back" / "model.safetensors"), gpt2())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == GPT2
    names = ["brainsurgery.lock.json", "config.json", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == names


def test_the_name_of_a_library_takes_the_layout_for_the_model(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    found = convert(source, tmp_path / "t.safetensors", layout="tunix")
    np.testing.assert_array_equal(
        found["layers.1.attn.q_proj.w"], llama()["model.layers.1.self_attn.q_proj.weight"].T.reshape(6, 2, 4)
    )


@pytest.mark.parametrize("scan", [True, False])
def test_the_way_back_finds_out_whether_layers_are_stacked(scan: bool, tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    there = tmp_path / "m.safetensors"
    convert(source, there, layout="maxtext", scan=scan, options={"pairs": False})
    raw = write(tmp_path / "bare.safetensors", read(there))  # without the notes of the first conversion
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    found = convert(
        str(raw), tmp_path / "back.safetensors", layout="maxtext", options={"pairs": False}, to="safetensors"
    )
    assert found.keys() == llama().keys()


def test_without_a_layout_a_change_of_format_keeps_all_names(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    same(convert(source, tmp_path / "copy.safetensors"), llama())


def test_a_tied_copy_is_left_out_and_comes_back(tmp_path: Path) -> None:
    tensors = llama() | {"lm_head.weight": llama()["model.embed_tokens.weight"]}
    source = model(tmp_path / "hf", tensors, LLAMA)
    bs.convert(source, str(tmp_path / "tunix"), layout="tunix", durable=False)
    assert len(bs.open(str(tmp_path / "tunix"))) == len(llama())
    bs.convert(str(tmp_path / "tunix"), str(tmp_path / "back"), durable=False)
    same(read(tmp_path / "back" / "model.safetensors"), tensors)


def test_a_tied_copy_that_differs_stops_the_conversion(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama() | {"lm_head.weight": normal((7, 6), seed=99)}, LLAMA)
    refused(source, tmp_path, r"'lm_head\.weight' differs in its bytes", layout="tunix")


def test_floating_tensors_are_cast_and_config_says_so(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2() | {"h.0.attn.bias": np.ones((1, 1), np.uint8)}, GPT2 | {"dtype": "float32"})
    bs.convert(source, str(tmp_path / "out"), dtype="bfloat16", durable=False, verify=True)
    assert {str(a.dtype) for a in bs.open(str(tmp_path / "out")).avals.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    bs.convert(source, str(tmp_path / "out"), dry_run=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


# --- Before anything is published -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one.safetensors", "shards/", "x.npz", "x.pt", "dcp/", "orbax/"])
def test_every_format_is_verified_before_it_is_published(name: str, tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    to = {"dcp/": "dcp", "orbax/": "orbax"}.get(name)
    bs.convert(source, str(tmp_path / name), layout="none", to=to, verify=True, durable=False)
    assert set(bs.open(str(tmp_path / name))) == set(gpt2())


def test_a_file_that_is_named_like_its_tensor_is_verified_too(tmp_path: Path) -> None:
    source = write(tmp_path / "one.safetensors", {"w": normal((2, 3))})
    bs.convert(str(source), str(tmp_path / "w.npy"), verify=True, durable=False)
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), normal((2, 3)))


@pytest.mark.parametrize(
    ("config", "wishes", "shown", "also"),
    [
        (GPT2, {"layout": "none"}, "the output holds the bytes of all 28 tensors of the source", None),
        (GPT2, {"layout": "none", "dtype": "bfloat16"}, "all 28 tensors of the source cast to bfloat16", None),
        (GPT2, {}, "converted back by flax-gpt2, the output holds the bytes of all 28 tensors of the source", ""),
        (GPT2, {"dtype": "bfloat16"}, "the bytes that flax-gpt2 computes from the source cast to bfloat16", ""),
        (LLAMA, {"layout": "maxtext", "options": {"pairs": False}}, "converted back by maxtext-llama",
         ", and that it expects pairs=false"),
        (LLAMA | {"head_dim": 2, "num_attention_heads": 4, "num_key_value_heads": 2}, {"layout": "maxtext"},
         "the bytes that maxtext-llama computes from the source, computed again", ", and that it expects pairs=true"),
    ],
)  # fmt: skip
def test_a_verification_tells_what_it_has_shown_and_what_not(
    tmp_path: Path, config: dict[str, Any], wishes: dict[str, Any], shown: str, also: str | None
) -> None:
    source = model(tmp_path / "hf", gpt2() if config is GPT2 else llama(), config)
    told = bs.convert(source, str(tmp_path / "out"), verify=True, durable=False, to="orbax", **wishes).said[-1]
    assert told.startswith("verified: ")
    assert shown in told
    unshown = "Not verified: what a model computes with them"
    assert told.endswith(unshown + also) if also is not None else "Not verified" not in told


def test_what_fails_its_verification_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    bs.convert(source, str(tmp_path / "good"), durable=False)
    other = write(tmp_path / "other.safetensors", {n: x + 1 for n, x in gpt2().items()})
    bs.convert(str(other), str(tmp_path / "bad"), layout="flax-gpt2", config=source, durable=False)
    monkeypatch.setattr(verification, "open_source", lambda path: open_source(str(tmp_path / "bad")))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(PlanError, match="differs in its bytes") as caught:
        bs.convert(source, str(tmp_path / "new"), verify=True, durable=False)
    assert "was not published" in caught.value.diagnostics[0].message
    with pytest.raises(PlanError, match="differs in its bytes"):
        bs.convert(source, str(tmp_path / "good"), verify=True, overwrite=True, durable=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    np.testing.assert_array_equal(bs.open(str(tmp_path / "good"))["params.ln_f.bias"], gpt2()["ln_f.bias"])


def test_config_is_published_together_with_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(tmp_path / "hf", gpt2(), None)
    (tmp_path / "c.json").write_text(json.dumps(GPT2 | {"dtype": "float32"}))
    staged: list[str] = []

    def published(items: Sequence[Staged], **how: Any) -> Any:
        staged.extend((Path(items[0].staging) / "config.json").read_text() for _ in items)
        return publish(items, **how)

    monkeypatch.setattr(publishing, "publish", published)
    bs.convert(source, str(tmp_path / "out"), dtype="bfloat16", config=str(tmp_path / "c.json"), durable=False)
    assert [json.loads(text) for text in staged] == [GPT2 | {"dtype": "bfloat16"}]


def test_a_config_that_says_the_same_keeps_its_bytes(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), None)
    text = json.dumps(GPT2, indent=1) + "\n\n"
    (tmp_path / "hf" / "config.json").write_text(text)
    bs.convert(source, str(tmp_path / "out"), durable=False)
    assert (tmp_path / "out" / "config.json").read_text() == text


# --- Optimizer states -------------------------------------------------------------------------------------------------


def test_moments_follow_the_weights(tmp_path: Path) -> None:
    weights = {f"params.{n}": x for n, x in gpt2().items()}
    moments = {f"opt_state.0.{m}.{n}": x * 2 for m in ("mu", "nu") for n, x in gpt2().items()}
    state = write(tmp_path / "state.safetensors", weights | moments | {"opt_state.0.count": np.array(3)})
    found = convert(str(state), tmp_path / "out.safetensors", layout="flax", with_opt_state=True)
    assert {"opt_state.0.mu.wte.weight", "opt_state.0.nu.ln_f.bias", "opt_state.0.count", "wte.weight"} <= found.keys()


def test_what_scales_a_weight_scales_its_moments_the_other_way(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    weights = convert(source, tmp_path / "m.safetensors", layout="maxtext")
    tree = {n.removeprefix("params."): x for n, x in weights.items()}
    moments = {f"opt_state.0.{m}.{n}": np.ones_like(x) for m in ("mu", "nu") for n, x in tree.items()}
    state = write(tmp_path / "state.safetensors", weights | moments)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    found = convert(str(state), tmp_path / "back.safetensors", layout="maxtext", with_opt_state=True)
    query = "params.model.layers.0.self_attn.q_proj.weight"
    # The head has 4 elements, so the query is divided by 2 on the way there: its gradient is twice as large.
    assert np.unique(found[f"opt_state.0.mu.{query}"]).tolist() == [0.5]
    assert np.unique(found[f"opt_state.0.nu.{query}"]).tolist() == [0.25]
    assert np.unique(found["opt_state.0.mu.params.model.layers.0.self_attn.v_proj.weight"]).tolist() == [1]


def test_without_the_wish_an_optimizer_state_is_left_out(tmp_path: Path) -> None:
    tensors = {f"params.{n}": x for n, x in gpt2().items()} | {"step": np.array(3), "opt_state.0.count": np.array(3)}
    found = convert(str(write(tmp_path / "s.safetensors", tensors)), tmp_path / "out.safetensors", layout="flax")
    same(found, gpt2())


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def refused(source: str, tmp_path: Path, match: str, **wishes: Any) -> PlanError:
    """The error of a conversion that must write nothing."""
    with pytest.raises(PlanError, match=match) as caught:
        bs.convert(source, str(tmp_path / "out"), durable=False, **wishes)
    assert not (tmp_path / "out").exists()
    return caught.value


def test_a_missing_config_is_asked_for(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), None)
    refused(
        source, tmp_path, r"'flax-gpt2' needs the model's config.json, and there is none beside", layout="flax-gpt2"
    )


def test_a_config_elsewhere_is_named(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), None)
    (tmp_path / "c.json").write_text(json.dumps(GPT2))
    bs.convert(source, str(tmp_path / "out"), layout="flax-gpt2", config=str(tmp_path / "c.json"), durable=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == GPT2


def test_a_field_that_config_lacks_is_named_with_its_rule(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), {k: v for k, v in GPT2.items() if k != "n_positions"})
    match = r"the rule of '\{base\}wpe.weight': config.json has no 'n_positions', which determines P"
    refused(source, tmp_path, match, layout="flax-gpt2")


def test_an_unknown_layout_has_a_suggestion(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    refused(source, tmp_path, r"unknown layout 'tunx'. Did you mean 'tunix'\?", layout="tunx")


@pytest.mark.parametrize(("dtype", "near"), [("bf17", "bf16"), ("bfloat", "bfloat16"), ("float23", "float32")])
def test_a_dtype_that_there_is_not_is_one_message_with_the_nearest(tmp_path: Path, dtype: str, near: str) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    refused(source, tmp_path, rf"^unknown dtype '{dtype}'\. Did you mean '{near}'\?", dtype=dtype)


def test_a_layout_for_another_model_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    error = refused(source, tmp_path, "'tunix-llama' is for .*, but config.json has model_type 'gpt2'",
                    layout="tunix-llama")  # fmt: skip
    assert error.diagnostics[0].hint == "Layouts for this model: flax-gpt2."


def test_a_library_without_a_layout_for_the_model_is_refused(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    refused(source, tmp_path, "no layout of 'tunix' is for model_type 'gpt2'", layout="tunix")


def test_several_layouts_for_a_model_are_listed(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    error = refused(source, tmp_path, "there are 4 layouts for model_type 'llama'", to="orbax")
    assert (
        error.diagnostics[0].hint == "Choose with `layout=`: easylm-llama, levanter-llama, maxtext-llama, tunix-llama; "
        "flax keeps names and shapes, none only changes the format."
    )


def test_a_model_without_a_layout_is_told_what_there_is(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), {"model_type": "strange"})
    error = refused(source, tmp_path, "there is no layout for model_type 'strange'", to="orbax")
    assert "`layout='flax'` keeps all names and shapes" in error.diagnostics[0].hint


@pytest.mark.parametrize("wish", [{"layout": "tunix"}, {"to": "orbax"}], ids=["a library", "a format"])
def test_a_model_that_nothing_names_is_asked_for(tmp_path: Path, wish: dict[str, str]) -> None:
    refused(model(tmp_path / "no", gpt2(), None), tmp_path, "there is no config.json beside it", **wish)
    refused(model(tmp_path / "hf", gpt2(), {"n_embd": 4}), tmp_path, "its config.json names no model_type", **wish)


def test_weights_are_not_cut_to_integers(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    refused(source, tmp_path, "'int8' is not a floating dtype", layout="flax-gpt2", dtype="int8")


def test_what_replaces_its_source_cannot_be_verified(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    with pytest.raises(PlanError, match="would be replaced, and the result could not be compared"):
        bs.convert(source, source + "/", layout="flax-gpt2", overwrite=True, verify=True)
    assert bs.open(source)["ln_f.bias"].shape == (4,)


def test_the_config_may_be_named_by_its_folder(tmp_path: Path) -> None:
    model(tmp_path / "hf", gpt2(), GPT2)
    source = model(tmp_path / "bare", gpt2(), None)
    bs.convert(source, str(tmp_path / "out"), layout="flax-gpt2", config=str(tmp_path / "hf"))
    assert "params.wte.embedding" in bs.open(str(tmp_path / "out"))


def test_the_way_back_leaves_no_note_of_itself(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    bs.convert(source, str(tmp_path / "there"), layout="flax-gpt2")
    bs.convert(str(tmp_path / "there"), str(tmp_path / "back"))
    assert not [key for key in bs.open(str(tmp_path / "back")).metadata if key.startswith("brainsurgery.")]


def test_tensors_that_are_missing_unknown_or_of_another_shape_are_told_at_once(tmp_path: Path) -> None:
    tensors = gpt2() | {"h.0.ln_3.weight": normal((4,)), "h.1.ln_1.bias": normal((5,))}
    del tensors["ln_f.bias"]
    error = refused(
        model(tmp_path / "hf", tensors, GPT2), tmp_path, "are not those of the Hugging Face side of flax-gpt2"
    )
    assert error.diagnostics[0].hint.splitlines() == [
        "missing (1): 'ln_f.bias' (Did you mean 'h.1.ln_2.bias'?)",
        "not known to the layout (1): 'h.0.ln_3.weight' (Did you mean 'h.0.ln_2.weight'?)",
        "'h.1.ln_1.bias' is f32[5], but config.json implies [4]",
    ]


def test_a_conversion_tells_no_places_in_a_plan_that_nobody_wrote(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2() | {"more": normal((2,))}, GPT2)
    assert "<mapping>" not in str(refused(source, tmp_path, "are not those of the Hugging Face side of flax-gpt2"))


def test_weights_that_are_integers_are_told(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama() | {"model.norm.weight": np.arange(6, dtype=np.int32)}, LLAMA)
    error = refused(source, tmp_path, "not those of the Hugging Face side", layout="tunix")
    assert error.diagnostics[0].hint == "'model.norm.weight' is i32[6], and weights are floating"


def test_a_tree_of_others_that_nothing_tells_the_layout_of_is_said_to_stay_as_it_is(tmp_path: Path) -> None:
    bs.save(str(tmp_path / "theirs"), {"params": {"w": normal((2,))}}, format="orbax", durable=False)
    report = bs.convert(str(tmp_path / "theirs"), str(tmp_path / "out"), durable=False)
    assert report.said == (NOT_KNOWN,)
    assert bs.convert(str(tmp_path / "theirs"), str(tmp_path / "meant"), layout="none", durable=False).said == ()


def test_the_word_of_a_library_will_do_in_a_plan(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    step = {"layout": {"name": "tunix", "config": f"{source}/config.json"}}
    bs.load({"inputs": [source], "transforms": [step], "output": str(tmp_path / "t.npz")}).run(durable=False)
    assert "layers.1.attn.q_proj.w" in bs.open(str(tmp_path / "t.npz"))
    assert "layers" in bs.open(source).to_linen(layout="tunix")


def test_an_option_that_a_layout_has_not_is_refused(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    refused(source, tmp_path, "flax-gpt2 has no option 'scan'", scan=True)


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", gpt2(), GPT2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")
    with pytest.raises(PlanError, match="exists"):
        bs.convert(source, str(tmp_path / "out"), durable=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept.txt"]


def test_a_source_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        bs.convert(str(tmp_path / "none"), str(tmp_path / "out"))


def test_options_of_the_command_are_read_by_their_kind() -> None:
    assert options_of(["scan=false", "n=3", "base=model."]) == {"scan": False, "n": 3, "base": "model."}


def test_a_config_that_the_tensors_contradict_is_corrected_as_the_note_says(tmp_path: Path) -> None:
    source = model(tmp_path / "gpt2", gpt2(), {**GPT2, "n_layer": 7})
    (note,) = bs.convert(source, str(tmp_path / "out") + "/", layout="none", to="orbax", durable=False).notes
    text = "Correct config.json of the source, or a copy that you name by `config=COPY`: `{n_layer: 2}`."
    assert (note.code, note.hint) == ("config-differs", text)
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps({**GPT2, "n_layer": 2}))
    again = str(tmp_path / "again")
    assert not bs.convert(source, again + "/", layout="none", to="orbax", config=str(copy), durable=False).notes
    assert json.loads(Path(again, "config.json").read_text())["n_layer"] == 2


def test_layers_with_a_gap_are_numbered_by_the_plan_that_the_note_writes(tmp_path: Path) -> None:
    tensors = {name.replace("h.1.", "h.3."): x for name, x in gpt2().items()}
    source = model(tmp_path / "gpt2", tensors, GPT2)
    found = bs.convert(source, str(tmp_path / "out") + "/", layout="none", to="orbax", durable=False).notes
    head, *steps = next(note.hint for note in found if "anew" in note.hint).split("\n")
    assert head == "Number them anew by a plan with these steps, and convert what it writes:"
    numbered = str(tmp_path / "numbered") + "/"
    bs.load({"inputs": [source], "transforms": yaml.safe_load("\n".join(steps)), "output": numbered}).run(durable=False)
    assert not bs.convert(numbered, str(tmp_path / "again") + "/", layout="none", to="orbax", durable=False).notes


def test_a_tensor_of_no_elements_is_converted_to_safetensors_as_the_message_says(tmp_path: Path) -> None:
    write(tmp_path / "in.safetensors", {"w": np.ones(2, np.float32), "empty": np.zeros((0, 4), np.float32)})
    with pytest.raises(PlanError, match="Write safetensors instead"):
        bs.convert(str(tmp_path / "in.safetensors"), str(tmp_path / "out") + "/", layout="none", to="orbax")
    assert convert(str(tmp_path / "in.safetensors"), tmp_path / "out.safetensors")["empty"].shape == (0, 4)
