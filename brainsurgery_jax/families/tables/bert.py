"""BERT and its kin."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family, ModelType

_V = ("vocab_size",)
_D = ("hidden_size",)
_L = ("num_hidden_layers",)
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
        "N": ("num_attention_heads",),
        "H": ("hidden_size // num_attention_heads",),
        "L": _L,
    },
    counts={"L": ("encoder.layer.#",)},
    shapes={
        "embeddings.word_embeddings.weight": "V B",
        "embeddings.position_embeddings.weight": "P B",
        "embeddings.token_type_embeddings.weight": "T B",
        "embeddings.LayerNorm.{weight,bias}": "B",
        "pooler.dense.weight": "D D",
        "pooler.dense.bias": "D",
        "encoder.layer.*.attention.self.{query,key,value}.weight": "N*H D",
        "encoder.layer.*.attention.self.{query,key,value}.bias": "N*H",
        "encoder.layer.*.attention.output.dense.weight": "D N*H",
        "encoder.layer.*.attention.output.{dense,LayerNorm}.bias": "D",
        "encoder.layer.*.attention.output.LayerNorm.weight": "D",
        "encoder.layer.*.intermediate.dense.weight": "F D",
        "encoder.layer.*.intermediate.dense.bias": "F",
        "encoder.layer.*.output.dense.weight": "D F",
        "encoder.layer.*.output.dense.bias": "D",
        "encoder.layer.*.output.LayerNorm.{weight,bias}": "D",
        "^cls.predictions.transform.dense.weight": "B D",
        "^cls.predictions.transform.{dense,LayerNorm}.bias": "B",
        "^cls.predictions.transform.LayerNorm.weight": "B",
        "^cls.predictions.{bias,decoder.bias}": "V",
        "^cls.predictions.decoder.weight": "V B",
        "^{lm_head,generator_lm_head}.{bias,decoder.bias}": "V",
        "^{lm_head.decoder,generator_lm_head}.weight": "V B",
        "^lm_head.dense.weight": "D D",
        "^lm_head.{dense,layer_norm}.bias": "D",
        "^lm_head.layer_norm.weight": "D",
        "embeddings_project.weight": "D B",
        "embeddings_project.bias": "D",
        "^generator_predictions.dense.weight": "B D",
        "^generator_predictions.{dense,LayerNorm}.bias": "B",
        "^generator_predictions.LayerNorm.weight": "B",
    },
    models=("bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "xlm-roberta"),
    tied=(("^cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),),
    copied={"^cls.predictions.bias": ("^cls.predictions.decoder.bias",)},
)

MODELS = (ModelType("bert", BERT, "BertForMaskedLM", tied=True),)
