"""Two models compared by what they compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, StoreError
from brainsurgery_jax.forward.gap import DEFAULT_TOKENS, READ_ROWS, LogitGap, gap_of, gather
from brainsurgery_jax.forward.logits import DecoderModel, logits
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.op import Kernel
from brainsurgery_jax.protocol import Known, Pending, TensorExpr
from brainsurgery_jax.reduction import Answer, Reduction
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.world import Files


def compare_logits(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    tokens: int | Sequence[int] = DEFAULT_TOKENS,
    memory: int | str | None = None,
) -> LogitGap:
    """Compare the logits of two decoders for the same tokens. Both are read layer by layer.

    **Arguments**: paths of folders with config.json; `tokens` are their ids, or how many to draw (always the same);
    `memory` is the budget, a number of bytes or a text such as "5GB" (default: a quarter of the available memory).
    **Returns** a `LogitGap`: `max_diff`, `kl` (nats a token), `agreement`, `finite`.
    **Raises** StoreError for what cannot be read, PlanError if a model is incomplete or its family is not known.
    **Example**:

    >>> bs.compare_logits("gpt2/", "gpt2/", tokens=[3, 1, 4]).max_diff
    0.0
    """
    ids = tokens if isinstance(tokens, int) else tuple(tokens)
    return _ask((left, right), lambda one, other: gap_of(one, other, ids), READ_ROWS, memory)


def read_logits(path: str | os.PathLike[str], tokens: Sequence[int], *, memory: int | str | None = None) -> np.ndarray:
    """The logits [tokens, vocabulary] in float32 of a decoder in a folder with config.json.

    Raises StoreError for what cannot be read, PlanError if the model is incomplete or its family is not known.
    """
    node: list[Expr] = []

    def build(model: DecoderModel) -> TensorExpr:
        node.append(cast("Expr", logits(model, tokens)))
        return node[0]

    flat = _ask((path,), build, gather(lambda values: values, np.zeros(0)), memory)
    return flat.reshape(node[0].aval.shape)


def _ask(
    paths: Sequence[str | os.PathLike[str]],
    build: Callable[..., TensorExpr],
    reduction: Reduction[Any, Answer],
    memory: int | str | None,
) -> Answer:
    """What a reduction makes of the expression that `build` makes of models in folders."""
    world = Files()
    try:
        models = [_Folder(world, os.fspath(path)) for path in paths]
        question = Pending((build(*models),), reduction, lambda found: Known(True))
        found = answers([question], default_budget(host_bytes=memory))[question]
        for model in models:
            model.source.verify_unchanged()
        return found
    except Refusal as bad:
        raise PlanError([Diagnostic(bad.code, bad.message, hint=bad.hint)]) from bad
    finally:
        world.close()


class _Folder:
    """The model in a folder."""

    def __init__(self, world: Files, path: str):
        self.source: Source = world.open(path)
        self._graph: Graph = world.graph
        self._avals: Mapping[str, Aval] = {name: entry.aval for name, entry in self.source.header.tensors.items()}
        self.config = _config(world, path)

    @property
    def names(self) -> Collection[str]:
        return self._avals.keys()

    def fetch(self, name: str) -> Expr:
        return self._graph.leaf(self.source, name, self._avals[name])

    def apply(self, kernel: Kernel[..., Array], *srcs: TensorExpr, **params: object) -> Expr:
        return self._graph.call(kernel, cast("tuple[Expr, ...]", srcs), params)


def _config(world: Files, path: str) -> Mapping[str, object]:
    text = world.side_file(path, "config.json")
    if text is None:
        raise StoreError(path, "has no config.json, which says how its logits are computed")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise StoreError(path, f"its config.json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(path, "its config.json holds no mapping")
    return found
