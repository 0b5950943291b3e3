"""The families of encoders, and of encoders with a decoder: BERT, ViT, CLIP's towers, T5, BART and Whisper."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family

_V, _D, _L = ("vocab_size",), ("hidden_size",), ("num_hidden_layers",)
_F = ("intermediate_size",)

BERT = Family(
    name="bert",
    marks=("encoder.layer.*.attention.self.query.weight",),
    bases=("bert.", "roberta.", "electra.", "camembert.", "deberta.", "ernie.", "data2vec_text.", ""),
    dims={
        "V": _V,
        "B": ("embedding_size", "input_embedding_size", "hidden_size"),
        "D": _D,
        "F": _F,
        "P": ("max_position_embeddings",),
        "T": ("type_vocab_size",),
        "L": _L,
    },
    counts={"L": ("encoder.layer.#",)},
    shapes={
        "embeddings.word_embeddings.weight": "V B",
        "embeddings.position_embeddings.weight": "P B",
        "embeddings.token_type_embeddings.weight": "T B",
        "embeddings.LayerNorm.{weight,bias}": "B",
        "encoder.layer.*.attention.self.{query,key,value}.weight": "D D",
        "encoder.layer.*.attention.self.{query,key,value}.bias": "D",
        "encoder.layer.*.attention.output.dense.weight": "D D",
        "encoder.layer.*.intermediate.dense.weight": "F D",
        "encoder.layer.*.intermediate.dense.bias": "F",
        "encoder.layer.*.output.dense.weight": "D F",
        "encoder.layer.*.output.LayerNorm.{weight,bias}": "D",
    },
    models=("bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "xlm-roberta"),
)

VIT = Family(
    name="vit",
    marks=("encoder.layer.*.attention.attention.query.weight",),
    bases=("vit.", "deit.", "beit.", "dinov2.", ""),
    dims={
        "D": _D,
        "F": _F,
        "C": ("num_channels",),
        "P": ("patch_size",),
        "L": _L,
    },
    counts={"L": ("encoder.layer.#",)},
    shapes={
        "embeddings.cls_token": "1 1 D",
        "embeddings.patch_embeddings.projection.weight": "D C P P",
        "encoder.layer.*.attention.attention.{query,key,value}.weight": "D D",
        "encoder.layer.*.attention.output.dense.weight": "D D",
        "encoder.layer.*.{layernorm_before,layernorm_after}.{weight,bias}": "D",
        "encoder.layer.*.intermediate.dense.weight": "F D",
        "encoder.layer.*.output.dense.weight": "D F",
        "layernorm.{weight,bias}": "D",
    },
    models=("deit", "dinov2", "vit", "vit_mae"),
)

TOWER = Family(
    name="clip",
    marks=("encoder.layers.*.mlp.fc1.weight",),
    bases=("",),
    dims={
        "V": _V,
        "D": _D,
        "F": _F,
        "P": ("patch_size",),
        "C": ("num_channels",),
        "L": _L,
    },
    counts={"L": ("encoder.layers.#",)},
    shapes={
        "embeddings.token_embedding.weight": "V D",
        "embeddings.position_embedding.weight": "_ D",
        "embeddings.patch_embedding.weight": "D C P P",
        "encoder.layers.*.self_attn.{q,k,v,out}_proj.weight": "D D",
        "encoder.layers.*.{layer_norm1,layer_norm2}.{weight,bias}": "D",
        "encoder.layers.*.mlp.fc1.weight": "F D",
        "encoder.layers.*.mlp.fc2.weight": "D F",
    },
    models=(
        "clip_text_model",
        "clip_vision_model",
        "siglip_text_model",
        "siglip_vision_model",
        "siglip2_text_model",
        "siglip2_vision_model",
    ),
)

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
)

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
        "L": ("encoder_layers",),
        "M": ("decoder_layers", "num_hidden_layers"),
    },
    counts={"L": ("encoder.layers.#",), "M": ("decoder.layers.#",)},
    shapes={
        "shared.weight": "V D",
        "{encoder,decoder}.layers.*.self_attn.{q,k,v,out}_proj.weight": "D D",
        "decoder.layers.*.encoder_attn.{q,k,v,out}_proj.weight": "D D",
        "{encoder,decoder}.layers.*.{self_attn_layer_norm,final_layer_norm}.{weight,bias}": "D",
        "encoder.layers.*.fc1.weight": "F D",
        "encoder.layers.*.fc2.weight": "D F",
        "decoder.layers.*.fc1.weight": "G D",
        "decoder.layers.*.fc2.weight": "D G",
        "encoder.embed_positions.weight": "P D",
        "decoder.embed_tokens.weight": "V D",
        "decoder.embed_positions.weight": "T D",
    },
    models=("bart", "m2m_100", "marian", "mbart", "opt", "pegasus", "whisper"),
)

ENCODERS = (BERT, VIT, TOWER, T5, BART)
