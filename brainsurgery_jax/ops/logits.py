"""`assert: {logits: ...}`: two models compute the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field, StrictFloat, StrictInt

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Text
from brainsurgery_jax.op import Kernel, assertion
from brainsurgery_jax.protocol import Known, Pending, TensorExpr, Verdict, View

Limit = Annotated[StrictFloat | StrictInt, Field(ge=0)]
Tokens = Annotated[
    StrictInt | tuple[StrictInt, ...], Field(description="the ids of tokens, or how many to draw (always the same)")
]


class _Alias(NamedTuple):
    """The model under an alias, with its config as it is by now."""

    view: View
    alias: str
    config: Mapping[str, object]

    @property
    def names(self) -> Collection[str]:
        return self.view.names(self.alias)

    def fetch(self, name: str) -> TensorExpr:
        return self.view.fetch(self.alias, name)

    def apply(self, kernel: Kernel[..., Array], *srcs: TensorExpr, **params: object) -> TensorExpr:
        return self.view.apply(kernel, *srcs, **params)


def _model(view: View, alias: str, key: str) -> _Alias:
    found = view.config(alias, key)
    if found is None or not isinstance(found[1], Mapping):
        raise Refusal("forward-incomplete", f"'{alias}' has no config.json, which says how its logits are computed",
                      key=key, hint="Put the config.json of the model beside its tensors.")  # fmt: skip
    return _Alias(view, alias, found[1])


@assertion()
def logits(
    view: View,
    *,
    left: Annotated[Text, Field(description="an alias")],
    right: Annotated[Text, Field(description="an alias")],
    tokens: Tokens = 32,
    max_diff: Limit | None = None,
    kl: Limit | None = None,
    agreement: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] | None = None,
) -> Verdict:
    """Two decoders compute the same logits: they differ by at most `max_diff`, by `kl` nats a token on average, and
    agree on the next token for at least a share `agreement` of them.

    A forward pass in float32, layer by layer; config.json says how. See docs/structure.md for the families.
    Example: `assert: {logits: {left: base, right: model, max_diff: 1e-4}}`
    """
    from brainsurgery_jax.forward.gap import READ_ROWS, LogitGap, gap_of  # which is made of ops

    bounds = {"max_diff": max_diff, "kl": kl, "agreement": agreement}
    if all(bound is None for bound in bounds.values()):
        raise Refusal("bounds-missing", "give at least one of max_diff, kl, agreement",
                      hint="Write, for example, `max_diff: 1e-4`.")  # fmt: skip
    gap = gap_of(_model(view, left, "left"), _model(view, right, "right"), tokens)

    def judge(found: LogitGap) -> Known:
        if not found.finite:
            return Known(False, f"the logits of '{left}' or '{right}' are not all finite")
        broken: list[str] = []
        if max_diff is not None and found.max_diff > max_diff:
            broken.append(f"the largest difference is {found.max_diff:.4g}, at most {max_diff:g} is allowed")
        if kl is not None and found.kl > kl:
            broken.append(f"the KL divergence is {found.kl:.4g} nats a token, at most {kl:g} is allowed")
        if agreement is not None and found.agreement < agreement:
            broken.append(f"{found.agreement:.1%} of the next tokens agree, at least {agreement:.1%} must")
        return Known(not broken, f"the logits of '{left}' and '{right}': {'; '.join(broken)}" if broken else "")

    return Pending((gap,), READ_ROWS, judge)
