"""`upcycle`, `expert_prune`, `expert_merge` and `experts`, judged by the models that `transformers` makes of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "deepseek_v3")
DOCS = Path(__file__).parents[2] / "docs" / "structure.md"
STACKED = (*EXPERTS, "gpt_oss")


@pytest.mark.parametrize("router", ["zero", "random"])
@pytest.mark.parametrize(
    ("name", "cls"),
    [("llama", "Mixtral"), ("mistral", "Mixtral"), ("qwen3", "Qwen3Moe"), ("olmo2", "FlexOlmo")],
)
def test_an_upcycled_model_computes_what_the_dense_one_did(name: str, cls: str, router: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "dense")
    edit(tmp_path / "dense", tmp_path / "out", {"upcycle": {"experts": 4, "router": router, "std": 0.5}})
    found = load(tmp_path / "out")
    assert type(found).__name__ == f"{cls}ForCausalLM"
    gate = found.model.layers[1].mlp.gate.weight
    assert gate.shape == (4, 32) and bool((gate != 0).all()) == (router == "random")
    assert_same(logits(found), logits(model))


def test_rows_of_routers_come_from_another_checkpoint(tmp_path: Path) -> None:
    model = make("mistral", tmp_path / "dense")
    rows = {f"model.layers.{i}.block_sparse_moe.gate.weight": torch.randn(3, 32) for i in range(3)}
    save_file(rows, tmp_path / "rows.safetensors")
    asked = {"upcycle": {"experts": 3, "per_token": 1, "router": "rows", "alias": "model"}}
    edit(tmp_path / "dense", tmp_path / "out", asked, rows=tmp_path / "rows.safetensors")
    found = load(tmp_path / "out")
    assert torch.equal(found.model.layers[2].mlp.gate.weight, rows["model.layers.2.block_sparse_moe.gate.weight"])
    assert_same(logits(found), logits(model))


def test_an_olmoe_has_the_mlps_of_the_dense_model_and_says_that_it_computes_something_else(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "dense")
    notes = edit(tmp_path / "dense", tmp_path / "out", {"upcycle": {"experts": 4, "to": "olmoe"}})
    assert any("normalizes queries and keys" in note.message for note in notes)
    found = load(tmp_path / "out")
    assert type(found).__name__ == "OlmoeForCausalLM"
    inside = torch.randn(2, 5, 32)
    with torch.no_grad():
        assert_same(found.model.layers[1].mlp(inside), model.model.layers[1].mlp(inside))


def test_what_a_config_leaves_out_is_what_it_was(tmp_path: Path) -> None:
    import json

    model = make("llama", tmp_path / "dense")
    path = tmp_path / "dense/config.json"
    config = json.loads(path.read_text())
    for key in ("rope_parameters", "rms_norm_eps", "hidden_act", "pad_token_id"):
        config.pop(key, None)  # as in the first Llamas
    path.write_text(json.dumps(config))
    edit(tmp_path / "dense", tmp_path / "out", {"upcycle": {"experts": 2}})
    assert_same(logits(load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("asked", [{"drop": [1]}, {"keep": [0, 2, 3]}, {"keep": [3, 0, 2]}])
@pytest.mark.parametrize("name", STACKED)
def test_a_model_without_an_expert_computes_what_it_did_where_no_token_took_it(
    name: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"expert_prune": asked})
    found = load(tmp_path / "out")
    for layer in model.model.layers:
        if (gate := getattr(layer.mlp, "gate", getattr(layer.mlp, "router", None))) is not None:
            forbid(gate, 1)
    assert_same(logits(found), logits(model))


def forbid(gate: Any, expert: int) -> None:
    """Let no token take an expert: the logit of its router is the least that there is."""
    linear = torch.nn.functional.linear

    def forward(*args: Any, **kwargs: Any) -> Any:
        def masked(x: torch.Tensor, weight: torch.Tensor, *bias: Any) -> torch.Tensor:
            made = linear(x, weight, *bias)
            return made.index_fill(-1, torch.tensor([expert]), -1e4)

        torch.nn.functional.linear = masked
        try:
            return type(gate).forward(gate, *args, **kwargs)
        finally:
            torch.nn.functional.linear = linear

    gate.forward = forward
    if hasattr(gate, "e_score_correction_bias"):
        gate.e_score_correction_bias[expert] = -1e4


def test_a_token_takes_no_more_experts_than_are_left(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"expert_prune": {"keep": [2]}})
    config = load(tmp_path / "out").config
    assert (config.num_local_experts, config.num_experts_per_tok) == (1, 1)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", STACKED)
def test_an_expert_becomes_the_mean_of_its_group(name: str, stacked: bool, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    first = [{"experts": {"names": "stacked"}}] * (stacked and name != "gpt_oss")
    edit(tmp_path / "whole", tmp_path / "out", *first, {"expert_merge": {"groups": [[0, 3], [2], [1]]}})
    found = load(tmp_path / "out")
    before, after = model.model.layers[1].mlp, found.model.layers[1].mlp
    router = ["router.weight", "router.bias"] if name == "gpt_oss" else ["gate.weight"]
    for name_ in ("experts.gate_up_proj", "experts.down_proj", *router):
        old, new = before.get_parameter(name_), after.get_parameter(name_)
        assert_same(new, torch.stack([(old[0] + old[3]) / 2, old[2], old[1]]))


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_stacked_and_separated_and_both_load(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "stacked", {"experts": {"names": "stacked"}})
    assert_same(logits(load(tmp_path / "stacked")), logits(model))
    tensors = load_file(tmp_path / "stacked/model.safetensors")
    assert torch.equal(
        tensors["model.layers.1.mlp.experts.gate_up_proj"], model.model.layers[1].mlp.experts.gate_up_proj
    )
    edit(tmp_path / "stacked", tmp_path / "again", {"experts": {"names": "separate"}})
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_experts_that_are_stacked_are_pruned_too(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "whole")
    for folder, steps in (("a", []), ("b", [{"experts": {"names": "stacked"}}])):
        edit(tmp_path / "whole", tmp_path / folder, *steps, {"expert_prune": {"drop": [0]}})
    assert_same(logits(load(tmp_path / "b")), logits(load(tmp_path / "a")))


@pytest.mark.parametrize(
    ("name", "step", "why"),
    [
        ("llama", {"upcycle": {"experts": 2, "per_token": 3}}, "a token cannot take 3 of 2 experts"),
        ("llama", {"upcycle": {"experts": 2, "to": "qwen3_moe"}}, "becomes none of type 'qwen3_moe': known is mixtral"),
        ("gpt2", {"upcycle": {"experts": 2}}, "a model of type 'gpt2' becomes none"),
        ("llama-biased", {"upcycle": {"experts": 2}}, "mixtral has no biases, but there is"),
        ("mistral", {"upcycle": {"experts": 2, "to": "olmoe"}}, "wants heads that are together as wide as the model"),
        ("llama", {"upcycle": {"experts": 41}}, "41 experts are more than the MLP has neurons"),
        ("llama", {"expert_prune": {"drop": [0]}}, "'model' has no experts"),
        ("mixtral", {"expert_prune": {}}, "give either keep or drop"),
        ("mixtral", {"expert_prune": {"drop": [4]}}, "there is no expert 4 of 4"),
        ("mixtral", {"expert_prune": {"drop": [0, 1, 2, 3]}}, "no expert is left"),
        ("mixtral", {"expert_merge": {"groups": [[0, 1], [1, 2, 3]]}}, "an expert comes twice"),
        ("mixtral", {"expert_merge": {"groups": [[0, 1], [2]]}}, "expert 3 is in no group"),
        ("mixtral", {"experts": {"names": "separate"}}, "have names of their own already"),
    ],
)
def test_experts_that_cannot_be_are_refused(name: str, step: dict[str, Any], why: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", step)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"expert_prune": {"drop": [1]}}, r"groups of experts would differ, \[3, 4\]"),
        ({"expert_prune": {"keep": [0, 7]}}, "groups are chosen by their 2 best experts, and would have 1"),
        ({"expert_merge": {"groups": [[0, 1], [2], [3], [4], [5], [6], [7]]}}, r"would differ, \[3, 4\]"),
        ({"expert_merge": {"groups": [[0, 1, 2, 3], [4, 5, 6, 7]]}}, "and would have 1"),
    ],
)
def test_groups_of_experts_stay_equal(step: dict[str, Any], why: str, tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path / "whole", n_group=2, topk_group=1, n_routed_experts=8)
    with pytest.raises(PlanError, match=why):
        edit(tmp_path / "whole", tmp_path / "out", step)


def test_one_expert_that_is_left_becomes_the_mlp_of_a_dense_model(tmp_path: Path) -> None:
    """The steps of docs/structure.md: the model computes what the mixture of this one expert does."""
    block = re.search(r"a dense model again:\n\n```\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert block is not None
    make("mixtral", tmp_path / "whole")
    first, *rest = yaml.safe_load(block[1])
    edit(tmp_path / "whole", tmp_path / "one", first)
    edit(tmp_path / "whole", tmp_path / "out", first, *rest)
    dense = load(tmp_path / "out")
    assert type(dense).__name__ == "LlamaForCausalLM"
    assert_same(logits(dense), logits(load(tmp_path / "one")))


def test_the_only_group_of_experts_keeps_two(tmp_path: Path) -> None:
    """The router of the class sums the two best scores of each group, also of one."""
    make("deepseek_v3", tmp_path / "whole", n_group=1, n_routed_experts=4)
    with pytest.raises(PlanError, match="n_group 1: groups are chosen by their 2 best experts, and would have 1"):
        edit(tmp_path / "whole", tmp_path / "out", {"expert_prune": {"keep": [2]}})
    edit(tmp_path / "whole", tmp_path / "out", {"expert_prune": {"keep": [2, 0]}})
    assert torch.isfinite(logits(load(tmp_path / "out"))).all()


@pytest.mark.parametrize(
    "step", [{"expert_prune": {"drop": [1, 5]}}, {"expert_merge": {"groups": [[0, 1], [2, 3], [4, 6], [5, 7]]}}]
)
def test_equal_groups_of_experts_compute(step: dict[str, Any], tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path / "whole", n_group=2, topk_group=1, n_routed_experts=8)
    edit(tmp_path / "whole", tmp_path / "out", step)
    assert torch.isfinite(logits(load(tmp_path / "out"))).all()


def test_a_token_takes_no_more_experts_than_are_left_in_its_groups(tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path / "whole", n_group=2, topk_group=1, n_routed_experts=8, num_experts_per_tok=4)
    edit(tmp_path / "whole", tmp_path / "out", {"expert_prune": {"keep": [0, 1, 2, 4, 5, 6]}})
    config = load(tmp_path / "out").config
    assert (config.n_routed_experts, config.num_experts_per_tok) == (6, 3)


@pytest.mark.parametrize("name", ["mistral", "qwen3", "olmo2"])
def test_shards_of_copies_compute_what_the_dense_model_did(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "dense")
    asked = {"upcycle": {"experts": 6, "per_token": 2, "shards": 2, "std": 0.5}}
    edit(tmp_path / "dense", tmp_path / "out", asked)
    found = load(tmp_path / "out")
    gate = found.model.layers[1].mlp.gate.weight
    assert torch.equal(gate[::2], gate[1::2]) and not torch.equal(gate[0], gate[2])
    assert found.model.layers[0].mlp.experts.down_proj.shape == (6, 32, 20)
    assert_same(logits(found), logits(model))


def test_shards_of_an_olmoe_have_the_mlps_of_the_dense_model(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "dense")
    asked = {"upcycle": {"experts": 8, "per_token": 4, "shards": 2, "to": "olmoe", "std": 0.5}}
    edit(tmp_path / "dense", tmp_path / "out", asked)
    found, inside = load(tmp_path / "out"), torch.randn(2, 5, 32)
    with torch.no_grad():
        assert_same(found.model.layers[1].mlp(inside), model.model.layers[1].mlp(inside))


@pytest.mark.parametrize(("name", "to"), [("llama", "olmoe"), ("olmo2", "flex_olmo"), ("mistral", "mixtral")])
def test_dropped_neurons_are_drawn_with_the_mean_and_deviation_of_what_they_replace(
    name: str, to: str, tmp_path: Path
) -> None:
    model = make(name, tmp_path / "dense")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight += 3.0
    model.save_pretrained(tmp_path / "dense")
    edit(tmp_path / "dense", tmp_path / "out", {"upcycle": {"experts": 3, "to": to, "drop": 0.25}})
    found, seen = load(tmp_path / "out"), set()
    for at, layer in enumerate(model.model.layers):
        mlp, experts = layer.mlp, found.model.layers[at].mlp.experts
        whole = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        for e in range(3):
            gate, up = (experts.gate_up_proj[e] != whole).any(-1).chunk(2)
            down = (experts.down_proj[e] != mlp.down_proj.weight).any(0)
            assert torch.equal(gate, up) and torch.equal(gate, down) and int(gate.sum()) == 10
            seen.add(tuple(gate.tolist()))
            new, old = experts.gate_up_proj[e][:40][gate], mlp.gate_proj.weight[gate]
            assert abs(float(new.mean() - old.mean())) < 5 * float(old.std()) / new.numel() ** 0.5
            assert 0.8 < float(new.std() / old.std()) < 1.25
    assert len(seen) == 9


def apart(name: str, folder: Path, own: int) -> Any:
    """A model like that in `folder` / a, with other experts from `own` on, and their rows of the router."""
    model = load(folder / "a")
    torch.manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for layer in model.model.layers:
            for each in (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                each[own:] = torch.randn_like(each[own:])
    model.save_pretrained(folder / name)
    return model


def join_by_hand(models: list[Any], own: int) -> Any:
    """The model with the experts of all, in torch."""
    config = models[0].config.__class__(**{
        **models[0].config.to_dict(), "num_experts": own + sum(m.config.num_experts - own for m in models),
    })  # fmt: skip
    made, states = type(models[0])(config).eval(), [m.state_dict() for m in models]
    made.load_state_dict({
        n: torch.cat([x, *(s[n][own:] for s in states[1:])]) if ".mlp.gate." in n or ".experts." in n else x
        for n, x in states[0].items()
    })  # fmt: skip
    return made


@pytest.mark.parametrize("name", ["flex_olmo", "olmoe"])
def test_joined_models_have_the_experts_and_routers_of_all(name: str, tmp_path: Path) -> None:
    models = [make(name, tmp_path / "a", num_experts=2), *(apart(other, tmp_path, 1) for other in "bc")]
    joined = {"expert_join": {"alias": "model", "others": ["b", "c"]}}
    edit(tmp_path / "a", tmp_path / "out", joined, b=tmp_path / "b", c=tmp_path / "c")
    found = load(tmp_path / "out")
    assert found.config.num_experts == 4
    wanted = join_by_hand(models, 1)
    assert_same(logits(found), logits(wanted))


def test_who_gave_experts_opts_out_and_leaves_what_there_was(tmp_path: Path) -> None:
    make("flex_olmo", tmp_path / "a", num_experts=2)
    apart("b", tmp_path, 1)
    steps = [{"expert_join": {"alias": "model", "others": ["b"]}}, {"expert_prune": {"alias": "model", "drop": [2]}}]
    edit(tmp_path / "a", tmp_path / "out", *steps, b=tmp_path / "b")
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("a", "out"))
    assert before.keys() == after.keys() and all(torch.equal(x, after[n]) for n, x in before.items())


def test_public_experts_that_differ_stop_the_run(tmp_path: Path) -> None:
    make("flex_olmo", tmp_path / "a", num_experts=2)
    apart("b", tmp_path, 0)
    joined = {"expert_join": {"alias": "model", "others": ["b"]}}
    with pytest.raises(PlanError, match="identical"):
        edit(tmp_path / "a", tmp_path / "out", joined, b=tmp_path / "b")
    assert not (tmp_path / "out").exists()
    edit(tmp_path / "a", tmp_path / "out", {"expert_join": {**joined["expert_join"], "public": 0}}, b=tmp_path / "b")
    assert load(tmp_path / "out").config.num_experts == 4
