"""BART, Whisper, OPT."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family, ModelType

_V = ("vocab_size",)

BART = Family(
    name="bart",
    marks=("encoder.layers.*.fc1.weight", "decoder.layers.*.fc1.weight"),
    bases=("model.", "", "transformer."),
    dims={
        "V": _V,
        "D": ("d_model", "hidden_size"),
        "F": ("encoder_ffn_dim",),
        "G": ("decoder_ffn_dim", "ffn_dim"),
        "P": ("max_source_positions",),
        "T": ("max_target_positions",),
        "N": ("encoder_attention_heads",),
        "H": ("d_model // encoder_attention_heads",),
        "K": ("decoder_attention_heads", "num_attention_heads"),
        "W": ("d_model // decoder_attention_heads", "hidden_size // num_attention_heads"),
        "C": ("num_mel_bins",),
        "L": ("encoder_layers",),
        "M": ("decoder_layers", "num_hidden_layers"),
    },
    counts={"L": ("encoder.layers.#",), "M": ("decoder.layers.#",)},
    shapes={
        "shared.weight": "V D",
        "^lm_head.weight": "V D",
        "^proj_out.weight": "V D",
        "^final_logits_bias": "1 V",
        "encoder.layers.*.self_attn.{q,k,v}_proj.weight": "N*H D",
        "encoder.layers.*.self_attn.{q,k,v}_proj.bias": "N*H",
        "encoder.layers.*.self_attn.out_proj.weight": "D N*H",
        "decoder.layers.*.{self_attn,encoder_attn}.{q,k,v}_proj.weight": "K*W D",
        "decoder.layers.*.{self_attn,encoder_attn}.{q,k,v}_proj.bias": "K*W",
        "decoder.layers.*.{self_attn,encoder_attn}.out_proj.weight": "D K*W",
        "{encoder,decoder}.layers.*.{self_attn,encoder_attn}.out_proj.bias": "D",
        "{encoder,decoder}.layers.*.{self_attn_layer_norm,final_layer_norm}.{weight,bias}": "D",
        "decoder.layers.*.encoder_attn_layer_norm.{weight,bias}": "D",
        "{encoder,decoder}.{layer_norm,layernorm_embedding,final_layer_norm}.{weight,bias}": "D",
        "encoder.conv1.weight": "D C 3",
        "encoder.conv2.weight": "D D 3",
        "encoder.{conv1,conv2}.bias": "D",
        "encoder.layers.*.fc1.bias": "F",
        "decoder.layers.*.fc1.bias": "G",
        "{encoder,decoder}.layers.*.fc2.bias": "D",
        "encoder.layers.*.fc1.weight": "F D",
        "encoder.layers.*.fc2.weight": "D F",
        "decoder.layers.*.fc1.weight": "G D",
        "decoder.layers.*.fc2.weight": "D G",
        "encoder.embed_positions.weight": "P D",
        "decoder.embed_tokens.weight": "V D",
        "decoder.embed_positions.weight": "T D | T+2 D",
    },
    models=("bart", "m2m_100", "marian", "mbart", "opt", "pegasus", "whisper"),
    stacks={"encoder": "L", "decoder": "M"},
    writers=("{self_attn,encoder_attn}.out_proj.{weight,bias}", "fc2.{weight,bias}"),
    tied=(("^lm_head.weight", "shared.weight"), ("^lm_head.weight", "decoder.embed_tokens.weight")),
    tied_of={"whisper": (("^proj_out.weight", "decoder.embed_tokens.weight"),)},
    copied={"shared.weight": ("{encoder,decoder}.embed_tokens.weight",)},
)

MODELS = (ModelType("whisper", BART, "WhisperForConditionalGeneration", tied=True),)
