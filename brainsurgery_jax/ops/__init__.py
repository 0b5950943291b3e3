"""The built-in ops, by family, as lists show them. A module is imported when one of the ops that it registers is looked
up: all of them would take a tenth of the time in which a command begins. None loads JAX or numpy.
"""

from brainsurgery_jax.op import ASSERTS, OPS

_OPS = {
    "shape": "copy reshape reshape_ permute permute_ transpose transpose_ take take_ repeat repeat_ pad pad_",
    "lowrank": "phlora phlora_",
    "adapters": "lora_extract lora_merge lora_resize",
    "asserts": "assert",
    "choose": "keep_largest keep_largest_",
    "compute": "compute",
    "create": "fill fill_ zeroes ones rand",
    "difference": "diff",
    "editing": "rome_ memit_ emmet_ ablate_ consolidate_ wanda_ sparsegpt_ rebasin",
    "elementwise": (
        "assign add add_ subtract subtract_ multiply multiply_ divide divide_ lerp lerp_ scale scale_ clamp "
        "clamp_ cast cast_"
    ),
    "sets": "concat stack split unstack",
    "experts": "upcycle expert_prune expert_merge expert_ranks expert_join experts",
    "interpretability": (
        "fold_norm centre_writing centre_unembed fold_value_biases refactor_attention standard_names fold_lens"
    ),
    "layout": "layout",
    "linalg": "matmul einsum",
    "merge": "merge",
    "names": "move delete prefixes load save",
    "products": "refactor",
    "reduce": "reduce",
    "quantize": "dequantize quantize",
    "report": "dump",
    "resize": "resize resize_",
    "session": "set execute help exit",
    "side_files": "config",
    "structure": "layers vocab tie untie fuse unfuse prune",
}

_ASSERTS = {
    "asserts": (
        "exists count shape dtype dimensions reads writes same_names same_types contiguous tied fingerprint "
        "unchanged all any not"
    ),
    "value_asserts": "iszero finite norm equal close identical",
    "equations": "holds relative_error low_rank",
    "logits": "logits",
    "side_files": "config consistent",
}

for _registry, _families in ((OPS, _OPS), (ASSERTS, _ASSERTS)):
    for _family, _names in _families.items():
        _registry.announce(f"{__name__}.{_family}", _names.split())
