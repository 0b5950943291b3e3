"""A dense model becomes one with experts: copies of its MLP, or shards of it, with neurons drawn anew if asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.protocol import Edit, ModelAsked, Substep, View
from brainsurgery_jax.structure.described import Described, captured, choose_alias, describe, filled, pattern, to
from brainsurgery_jax.structure.experts import note_rows
from brainsurgery_jax.structure.patches import become
from brainsurgery_jax.structure.projections import WIDTH
from brainsurgery_jax.structure.proof import preserve
from brainsurgery_jax.wording import few

ZERO, RANDOM = "zero", "random"


class Upcycling(NamedTuple):
    """What a dense model becomes: its class, how many experts it has and a token takes, and what the rows of routers
    hold: zeros, random numbers with a standard deviation, or those of another alias. `shards`: experts that together
    are one copy of the MLP; `drop`: the share of the neurons of each expert that are drawn anew."""

    kind: str | None
    experts: int
    per_token: int
    router: str
    std: float
    shards: int = 1
    drop: float = 0.0


def upcycle(view: View, which: ModelAsked, asked: Upcycling, *, prove: bool) -> Iterator[Edit]:
    """What the op `upcycle` does."""
    model = describe(view, which, hint=_write_steps(choose_alias(view, which.alias), asked))
    if model.given is not None:
        model.require("mlp", "up")
        (up,) = model.names([f"{model.roles['up']}.weight"])
        inner = model.roles["mlp"], up, model.part_of(up, WIDTH)[1]
        message = (
            "no class with experts is known for a family that the step describes, whose names the result would get"
        )
        raise Refusal("structure-experts", message, key="family", hint=_write_steps(model.alias, asked, *inner))
    kind, other, experts = _classes(model, asked)
    if not 0 < asked.per_token <= asked.experts:
        raise Refusal("structure-experts", f"a token cannot take {asked.per_token} of {asked.experts} experts",
                      key="per_token", hint=f"Give 1 to {asked.experts}.")  # fmt: skip
    _refuse_unfit(model, other, experts, asked)
    _refuse_uneven(model, asked)
    config = {
        **become(kind, other, model.place.config),
        experts.count: asked.experts, experts.chosen: asked.per_token, experts.width: model.size("F") // asked.shards,
        **({experts.normalized: True} if experts.normalized else {}),
    }  # fmt: skip
    if experts.adds:
        message = (
            f"{other.name} normalizes queries and keys, which {kind.name} does not: logits differ until it is trained"
        )
        view.note("structure-experts", message, "to", "For a model that computes the same, name a class without them.")
    note_rows(view, model, model.size("F") // asked.shards, "F", "shards" if asked.shards > 1 else "experts")
    steps = [*_copies(model, experts, asked), *_routers(model, experts, asked), *_add(model, experts)]
    if asked.drop:
        steps += _drop(model, experts, asked, view.scratch())
    dense = rf"{re.escape(model.layered())}\d+\.{experts.dense}\.(?:{'|'.join(experts.parts)})\.weight"
    steps += [Substep("delete", {"target": to(model.alias, dense)}), *model.configure(config)]
    yield preserve(view, model, steps, prove=prove)


def _write_steps(
    alias: str, asked: Upcycling, mlp: str = "layers.*.mlp", up: str = "layers.*.mlp.up_proj.weight", axis: int = 1
) -> str:
    """The remedy for a model of no known class: the steps that give it experts, by the names of its modules. `axis`:
    the one of the residual stream in the matrix `up`; the router is [out, in] or [in, out] as this is."""
    part = f"[:{asked.experts}, :]" if axis else f"[:, :{asked.experts}]"
    lead = mlp.rpartition(".")[0]
    copy = {"from": f"{alias}::{captured(mlp)}\\.(.+)", "to": f"{alias}::{filled(lead)}.experts.0.\\g<2>"}
    rows = {"from": f"{alias}::{captured(up)}::{part}",
            "to": f"{alias}::{filled(lead)}.router.weight", "mode": "rand", "std": asked.std}  # fmt: skip
    steps = {"copy": copy, "fill": rows, "delete": {"target": f"{alias}::{pattern(mlp)}\\..+"},
             "config": {"patch": {"num_experts": asked.experts}, "alias": alias}}  # fmt: skip
    first, *others = (f"`- {op}: {json.dumps(keys)}`" for op, keys in steps.items())
    return f"Write the steps: {first} (and so for each expert), {', '.join(others)}, with the names that its class has."


def _classes(model: Described, asked: Upcycling) -> tuple[ModelType, ModelType, Experts]:
    """What the model is and becomes. Raises Refusal."""
    kind = model.kind
    fitting = [m for m in MODELS.values() if m.experts is not None and kind is not None and kind.name in m.experts.of]
    other = next((m for m in fitting if asked.kind in (None, m.name)), None)
    if kind is None or other is None or other.experts is None or model.place.part:
        known = sorted({name for m in MODELS.values() if m.experts for name in m.experts.of})
        fits = few([m.name for m in fitting]) or "none"
        wanted = f"of type '{asked.kind}'" if asked.kind else "with experts"
        message = f"a model of type '{model.place.kind}' becomes none {wanted}: known is {fits}"
        raise Refusal("structure-experts", message, key="to", hint=f"Dense models that have one are {few(known)}.")
    return kind, other, other.experts


def _refuse_unfit(model: Described, other: ModelType, experts: Experts, asked: Upcycling) -> None:
    """Refuse a model that the class with experts cannot hold."""
    head = model.layered()
    biases = [n for n in model.kin if n.startswith(head) and n.endswith(".bias")]
    unfit = [n for n in biases if ".mlp." in n or not experts.biased]
    width = model.size("N") * model.size("H")
    if unfit:
        raise Refusal("structure-experts", f"{other.name} has no biases, but there is '{unfit[0]}'", key="to",
                      hint="Name another class, or delete the biases before this step.")  # fmt: skip
    if other.fixed_heads and width != model.size("D"):
        message = f"{other.name} wants heads that are together as wide as the model, {model.size('D')}, not {width}"
        raise Refusal("structure-experts", message, key="to", hint="Name another class.")
    if asked.experts > model.size("F"):
        message = f"{asked.experts} experts are more than the MLP has neurons, {model.size('F')}"
        raise Refusal("structure-experts", message, key="experts", hint="Give fewer.")


def _refuse_uneven(model: Described, asked: Upcycling) -> None:
    """Refuse shards that do not make whole copies of the MLP, or of which a token may take parts of several."""
    for key, count in (("experts", asked.experts), ("per_token", asked.per_token), ("shards", model.size("F"))):
        if count % asked.shards:
            what = "the neurons of the MLP" if key == "shards" else key
            message = f"{asked.shards} shards are one copy of the MLP, and {what}, {count}, is no multiple of it"
            raise Refusal("structure-experts", message, key=key, hint="Give multiples of `shards`, or other shards.")
    if asked.shards > 1 and asked.router == ZERO:
        message = "with equal rows a token may take shards of different copies"
        raise Refusal("structure-experts", message, key="router", hint="Write `router: random`.")


_DOWN = "down_proj"


def _copies(model: Described, experts: Experts, asked: Upcycling) -> Iterator[Substep]:
    """The steps that copy the MLP of every layer to each expert: bytes, and nothing is computed. A shard is multiplied
    by the number of them, since the weights of experts add up to 1."""
    head = model.layered()
    same = all(old == new for old, new in experts.parts.items())
    renamed = {"|".join(experts.parts): r"\g<2>"} if same and asked.shards == 1 else experts.parts
    width = model.size("F") // asked.shards
    for number in range(asked.experts):
        rows = f"{number % asked.shards * width}:{(number % asked.shards + 1) * width}"
        for old, new in renamed.items():
            source = rf"{re.escape(head)}(\d+)\.{re.escape(experts.dense)}\.({old})\.weight"
            target = rf"{head}\g<1>.{experts.block}.experts.{number}.{new}.weight"
            given: object = to(model.alias, source)
            if asked.shards > 1:
                cut = f"[:, {rows}]" if old == _DOWN else f"[{rows}, :]"
                given = {"alias": model.alias, "name": source, "slice": cut}
            yield Substep("copy", {"from": given, "to": to(model.alias, target)})
    if asked.shards > 1:
        yield Substep("scale_", {"target": _weights(model, experts, r"\d+", _DOWN), "by": asked.shards})


def _weights(model: Described, experts: Experts, number: str, part: str) -> object:
    """A matrix of experts of that number (a pattern), in every layer; the layer is captured."""
    head = rf"{re.escape(model.layered())}(\d+)\.{re.escape(experts.block)}\.experts"
    return to(model.alias, rf"{head}\.{number}\.{re.escape(experts.parts[part])}\.weight")


def _drop(model: Described, experts: Experts, asked: Upcycling, work: str) -> Iterator[Substep]:
    """The steps that draw neurons of each expert anew, each matrix with the mean and the deviation of what it loses."""
    width = model.size("F") // asked.shards
    count = max(1, int(asked.drop * width))
    # In float32 hardly any two of the numbers that choose neurons are equal, whatever the dtype of the model.
    yield Substep("zeroes", {"target": to(work, "which"), "shape": [width]})
    for number in range(asked.experts):
        for layer in range(model.size("L")):
            named = to(work, f"which.{layer}.{number}")
            yield Substep("fill", {"from": to(work, "which"), "to": named, "mode": "rand"})
        for part in experts.parts:
            weights, noise = _weights(model, experts, str(number), part), to(work, rf"{part}.\g<1>.{number}")
            normal = {"mode": "rand", "distribution": "normal", "mean": 0, "std": 1}
            yield Substep("fill", {"from": weights, "to": noise, **normal})
            names = {"w": weights, "n": noise, "u": to(work, rf"which.\g<1>.{number}")}
            shape = "[None, :]" if part == _DOWN else "[:, None]"
            let = {
                "m": f"(u >= kth_largest(u, {count})){shape}",
                "mid": f"sum(where(m, w, 0)) / {count * model.size('D')}",
                "dev": f"sqrt(sum(where(m, (w - mid) ** 2, 0)) / {count * model.size('D')})",
            }
            yield Substep("compute", {"from": names, "let": let, "expr": "where(m, mid + dev * n, w)"})


def _routers(model: Described, experts: Experts, asked: Upcycling) -> Iterator[Substep]:
    """The steps that make the rows of all routers: one for each copy of the MLP, which its shards share."""
    head = model.layered()
    target = rf"{head}\g<1>.{experts.block}.{experts.router}"
    source = rf"({re.escape(head)}\d+\.{re.escape(experts.block)}\.{re.escape(experts.router)})"
    if asked.router not in (ZERO, RANDOM):
        yield Substep("copy", {"from": to(asked.router, source), "to": to(model.alias, r"\g<1>")})
    else:
        first = next(iter(experts.parts))
        like = {
            "alias": model.alias, "name": rf"{re.escape(head)}(\d+)\.{re.escape(experts.dense)}\.{first}\.weight",
            "slice": f"[:{asked.experts // asked.shards}, :]",
        }  # fmt: skip
        how = {"mode": "constant", "value": 0}
        if asked.router == RANDOM:
            how = {"mode": "rand", "distribution": "normal", "mean": 0, "std": asked.std}
        yield Substep("fill", {"from": like, "to": to(model.alias, target), **how})
    if asked.shards > 1:
        repeated = f"repeat(w, {asked.shards}, axis=0)"
        names = {"w": to(model.alias, source)}
        yield Substep("compute", {"from": names, "expr": repeated, "to": to(model.alias, r"\g<0>")})


def _add(model: Described, experts: Experts) -> Iterator[Substep]:
    """The steps that make norms which only the class with experts has."""
    head = model.layered()
    for name, rows in experts.adds.items():
        like = {"alias": model.alias, "name": rf"{re.escape(head)}(\d+)\.{re.escape(rows)}", "slice": "[:, 0]"}
        target = to(model.alias, rf"{head}\g<1>.{name}")
        yield Substep("fill", {"from": like, "to": target, "mode": "constant", "value": 1})
