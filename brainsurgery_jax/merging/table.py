"""Every merge method by its name."""

from __future__ import annotations

from brainsurgery_jax.merging.arcee_fusion import ARCEE_FUSION
from brainsurgery_jax.merging.arithmetic import TASK_ARITHMETIC
from brainsurgery_jax.merging.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from brainsurgery_jax.merging.dare import DARE_LINEAR, DARE_TIES
from brainsurgery_jax.merging.della import DELLA, DELLA_LINEAR
from brainsurgery_jax.merging.election import BITDELTA, CONSENSUS, EMR, MAGMAX
from brainsurgery_jax.merging.linear import LINEAR
from brainsurgery_jax.merging.method import MergeMethod
from brainsurgery_jax.merging.model_stock import MODEL_STOCK
from brainsurgery_jax.merging.nearswap import NEARSWAP
from brainsurgery_jax.merging.passthrough import PASSTHROUGH
from brainsurgery_jax.merging.ram import RAM, RAMPLUS_TL
from brainsurgery_jax.merging.sce import SCE
from brainsurgery_jax.merging.slerp import NUSLERP, SLERP
from brainsurgery_jax.merging.spectra import ISO_C, TSV_M
from brainsurgery_jax.merging.spheres import KARCHER, MULTISLERP
from brainsurgery_jax.merging.statistics import FISHER, REGMEAN
from brainsurgery_jax.merging.ties import TIES

METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        LINEAR, SLERP, NUSLERP, MULTISLERP, KARCHER, TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES, DELLA, DELLA_LINEAR,
        BREADCRUMBS, BREADCRUMBS_TIES, MODEL_STOCK, SCE, ARCEE_FUSION, NEARSWAP, RAM, RAMPLUS_TL, PASSTHROUGH, FISHER,
        REGMEAN, TSV_M, ISO_C, MAGMAX, EMR, CONSENSUS, BITDELTA,
    )
}  # fmt: skip
