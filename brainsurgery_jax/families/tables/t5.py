"""T5."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family, ModelType

_V = ("vocab_size",)

T5 = Family(
    name="t5",
    marks=("encoder.block.*.layer.*.SelfAttention.q.weight", "decoder.block.*.layer.*.SelfAttention.q.weight"),
    bases=("", "transformer."),
    dims={
        "V": _V,
        "D": ("d_model",),
        "F": ("d_ff",),
        "H": ("d_kv",),
        "N": ("num_heads",),
        "B": ("relative_attention_num_buckets",),
        "L": ("num_layers",),
        "M": ("num_decoder_layers", "num_layers"),
    },
    counts={"L": ("encoder.block.#",), "M": ("decoder.block.#",)},
    shapes={
        "shared.weight": "V D",
        "^lm_head.weight": "V D",
        "{encoder,decoder}.block.*.layer.*.SelfAttention.{q,k,v}.weight": "N*H D",
        "{encoder,decoder}.block.*.layer.*.SelfAttention.o.weight": "D N*H",
        "{encoder,decoder}.block.*.layer.*.SelfAttention.relative_attention_bias.weight": "B N",
        "decoder.block.*.layer.*.EncDecAttention.{q,k,v}.weight": "N*H D",
        "decoder.block.*.layer.*.EncDecAttention.o.weight": "D N*H",
        "{encoder,decoder}.block.*.layer.*.layer_norm.weight": "D",
        "{encoder,decoder}.block.*.layer.*.DenseReluDense.{wi,wi_0,wi_1}.weight": "F D",
        "{encoder,decoder}.block.*.layer.*.DenseReluDense.wo.weight": "D F",
        "{encoder,decoder}.final_layer_norm.weight": "D",
    },
    rare=("H",),
    models=("mt5", "t5", "umt5"),
    stacks={"encoder": "L", "decoder": "M"},
    writers=("layer.*.{SelfAttention,EncDecAttention}.o.weight", "layer.*.DenseReluDense.wo.weight"),
    first=("layer.*.SelfAttention.relative_attention_bias.weight",),
)

MODELS = (ModelType("t5", T5, "T5ForConditionalGeneration", tied=True),)
