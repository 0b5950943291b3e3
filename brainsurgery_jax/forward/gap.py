"""How far the logits of two models are apart."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, Float, jax, jnp, np
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.forward.architecture import decoder_of
from brainsurgery_jax.forward.logits import DecoderModel, check_count, check_tokens, logits
from brainsurgery_jax.op import Avals, Params, kernel
from brainsurgery_jax.protocol import TensorExpr
from brainsurgery_jax.reduction import Answer, Reduction

DEFAULT_TOKENS = 32
"""Tokens that are looked at if none are given."""


class LogitGap(NamedTuple):
    """Figures of two models for the same tokens. `max_diff`: the largest difference of two logits; `kl`: the mean
    Kullback-Leibler divergence of the right from the left, in nats a token; `agreement`: the share of tokens after
    which both predict the same next one. `finite`: whether all logits are finite."""

    max_diff: float
    kl: float
    agreement: float
    finite: bool


def _row_figures(avals: Avals, params: Params) -> Avals:
    return (Aval((avals[0].shape[0], 4), FLOAT32),)


def _copies(avals: Avals, params: Params) -> int:
    return 4 * 4 * avals[0].size


@kernel(result=_row_figures, workspace=_copies)
def logit_gap(left: Float[Array, "t v"], right: Float[Array, "t v"]) -> Array:
    """For each token: the largest difference, the KL divergence, whether the same logit is the largest, and whether all
    are finite."""
    a, b = (jax.nn.log_softmax(jnp.asarray(x), axis=-1) for x in (left, right))
    divergence = jnp.maximum((jnp.exp(a) * (a - b)).sum(-1), 0)
    same = left.argmax(-1) == right.argmax(-1)
    finite = (jnp.isfinite(left) & jnp.isfinite(right)).all(-1)
    largest = jnp.abs(left - right).max(-1)
    return jnp.stack([x.astype(jnp.float32) for x in (largest, divergence, same, finite)], axis=-1)


def figures(rows: np.ndarray) -> LogitGap:
    """The figures of all tokens, from the result of `logit_gap`."""
    largest, divergence, same, finite = rows.reshape(-1, 4).T.astype(np.float64)
    return LogitGap(float(largest.max()), float(divergence.mean()), float(same.mean()), bool(finite.all()))


def gather(finish: Callable[[np.ndarray], Answer], empty: Answer) -> Reduction[list[np.ndarray], Answer]:
    """The reduction that gives all values of a tensor at once, in row-major order, to `finish`."""
    return Reduction(
        lambda block: [np.array(block)], lambda a, b: [*a, *b], lambda blocks: finish(np.concatenate(blocks)), empty
    )


READ_ROWS = gather(figures, LogitGap(0.0, 0.0, 1.0, True))


def gap_of(left: DecoderModel, right: DecoderModel, tokens: int | tuple[int, ...]) -> TensorExpr:
    """The figures [tokens, 4] of two models with vocabularies of one size. `tokens`: their ids, or how many.

    Raises `Refusal` as `logits`, and if the vocabularies differ.
    """
    sizes = [decoder_of(side.config).vocabulary for side in (left, right)]
    ids = draw_tokens(tokens, min(sizes)) if isinstance(tokens, int) else tokens
    check_tokens(ids, min(sizes))
    one, other = (logits(side, ids) for side in (left, right))
    if one.aval != other.aval:
        raise Refusal("shapes-differ", f"the logits of the left are {one.aval}, those of the right {other.aval}",
                      hint="Compare models with the same vocabulary.")  # fmt: skip
    return left.apply(logit_gap, one, other)


def draw_tokens(count: int, vocabulary: int) -> tuple[int, ...]:
    """So many tokens of a vocabulary, always the same ones. Raises `Refusal` for none and for too many."""
    check_count(count)
    source = Random(0)
    return tuple(source.randrange(vocabulary) for _ in range(count))
