"""Errors in what a plan reads: other values, damaged ones, other shapes, dtypes, names and configs, swapped inputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from brainsurgery_jax.auditing.cases import Case, Mutant, Mutator, StandIn, config_of, key_of
from brainsurgery_jax.auditing.places import matches, names_of, references
from brainsurgery_jax.dtypes import BFLOAT16, FLOAT16, FLOAT32, Aval, DType, to_numpy

if TYPE_CHECKING:
    import numpy as np


def _read(case: Case) -> Iterator[tuple[str, str, StandIn, list[str]]]:
    """Each checkpoint once: its alias, key, stand-in, and the floats in it that steps name, or all floats."""
    seen = set[str]()
    for alias, path in case.inputs:
        key = key_of(path)
        if key in seen or key not in case.stand_ins:
            continue
        seen.add(key)
        it = case.stand_ins[key]
        floats = [n for n, aval in it.avals.items() if aval.dtype.is_float and aval.size]
        aliases = ({own for own, other in case.inputs if key_of(other) == key}) | ({""} if _is_only(case) else set())
        named = {n for ref in references(case) if ref.alias.removesuffix("::") in aliases for n in
                 matches(ref.pattern, names_of(case, ref.alias))}  # fmt: skip
        yield alias, key, it, [n for n in floats if n in named] or floats


def _is_only(case: Case) -> bool:
    return len(case.inputs) == 1


def _in_one(edit: Callable[[np.ndarray], np.ndarray | None], what: str) -> Callable[[Case], Iterator[Mutant]]:
    """Mutants with one other tensor in an input. `edit`: its other values, or None where it does not apply."""

    def plant(case: Case) -> Iterator[Mutant]:
        for alias, key, it, names in _read(case):
            for name in names[:: max(1, len(names) // 3)]:
                new = edit(it.tensors[name])
                if new is not None:
                    avals = {name: Aval(new.shape, it.avals[name].dtype)}
                    changed = it.with_tensors({name: new}, avals)
                    yield Mutant(f"{alias}::{name} {what}", case.replace_stand_in(key, changed))

    return plant


def _spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        new = array.copy()
        new.flat[new.size // 2] = value
        return new

    return edit


def _flip_bit(array: np.ndarray) -> np.ndarray:
    """A high bit of the mantissa of the element in the middle."""
    new = array.copy()
    flat = new.reshape(-1).view("uint8")
    flat[(new.size // 2) * new.itemsize + new.itemsize - 2] ^= 0x20
    return new


def _transpose(array: np.ndarray) -> np.ndarray | None:
    import numpy as np

    if array.ndim != 2 or min(array.shape) < 2:
        return None
    turned = np.ascontiguousarray(array.T)
    return None if turned.tobytes() == array.tobytes() else turned


def _transpose_square(array: np.ndarray) -> np.ndarray | None:
    return _transpose(array) if array.ndim == 2 and array.shape[0] == array.shape[1] else None


def _narrow(array: np.ndarray) -> np.ndarray | None:
    return array[..., : array.shape[-1] // 2].copy() if array.ndim and array.shape[-1] > 1 else None


def _in_all(
    edit: Callable[[np.ndarray, Aval], tuple[np.ndarray, Aval] | None], what: str
) -> Callable[[Case], Iterator[Mutant]]:
    """Mutants with all floats of an input other."""

    def plant(case: Case) -> Iterator[Mutant]:
        for alias, key, it, _ in _read(case):
            made = {name: edit(it.tensors[name], aval) for name, aval in it.avals.items() if aval.dtype.is_float}
            found = {name: pair for name, pair in made.items() if pair is not None}
            if found:
                arrays = {name: array for name, (array, _) in found.items()}
                changed = it.with_tensors(arrays, {name: aval for name, (_, aval) in found.items()})
                yield Mutant(f"{alias}: {what}", case.replace_stand_in(key, changed))

    return plant


def _vary(array: np.ndarray, aval: Aval) -> tuple[np.ndarray, Aval]:
    """Values that are a third off, each by another factor: as another run of training would give."""
    import numpy as np

    noise = np.random.default_rng(array.size).normal(size=array.shape)
    return (array.astype(np.float64) * (1 + noise / 3)).astype(array.dtype), aval


def _recast(array: np.ndarray, aval: Aval) -> tuple[np.ndarray, Aval]:
    other = BFLOAT16 if aval.dtype == FLOAT32 else FLOAT32
    return array.astype(to_numpy(other)), aval._replace(dtype=other)


def _round(dtype: DType) -> Callable[[np.ndarray, Aval], tuple[np.ndarray, Aval] | None]:
    def edit(array: np.ndarray, aval: Aval) -> tuple[np.ndarray, Aval] | None:
        if aval.dtype.bits <= dtype.bits:
            return None
        return array.astype(to_numpy(dtype)).astype(array.dtype), aval

    return edit


def _widths(case: Case) -> Iterator[Mutant]:
    """An input of half the width: the most frequent size of its axes, wherever it is."""
    for alias, key, it, _ in _read(case):
        sizes = Counter(size for aval in it.avals.values() for size in set(aval.shape) if size >= 4 and size % 2 == 0)
        if not sizes:
            continue
        width = sizes.most_common(1)[0][0]
        made = {
            n: x[tuple(slice(0, s // 2 if s == width else s) for s in x.shape)].copy() for n, x in it.tensors.items()
        }
        avals = {n: aval._replace(shape=made[n].shape) for n, aval in it.avals.items()}
        yield Mutant(
            f"{alias}: {width // 2} wide, not {width}", case.replace_stand_in(key, it.with_tensors(made, avals))
        )


def _lose(case: Case) -> Iterator[Mutant]:
    for alias, key, it, _ in _read(case):
        lost = list(it.avals)[-max(1, len(it.avals) // 3) :]
        if len(lost) < len(it.avals):
            yield Mutant(f"{alias}: the last {len(lost)} tensors missing", case.replace_stand_in(key, it.without(lost)))


def _lose_layer(case: Case) -> Iterator[Mutant]:
    for alias, key, it, _ in _read(case):
        numbers = Counter(next((p for p in n.split(".") if p.isdecimal()), "") for n in it.avals)
        layers = sorted((int(n) for n in numbers if n), key=int)
        if len(layers) > 2:
            gone = str(layers[len(layers) // 2])
            lost = [n for n in it.avals if gone == next((p for p in n.split(".") if p.isdecimal()), "")]
            yield Mutant(f"{alias}: layer {gone} missing", case.replace_stand_in(key, it.without(lost)))


def _untie(case: Case) -> Iterator[Mutant]:
    """One of two matrices with the same bytes changed."""
    for alias, key, it, _ in _read(case):
        by_bytes: dict[tuple[object, bytes], list[str]] = {}
        for name, array in it.tensors.items():
            if array.ndim == 2 and array.size > 1 and array.any():
                by_bytes.setdefault((it.avals[name], array.tobytes()), []).append(name)
        for names in by_bytes.values():
            if len(names) > 1:
                new = it.tensors[names[-1]] * 2
                changed = it.with_tensors({names[-1]: new.astype(it.tensors[names[-1]].dtype)})
                what = f"{alias}::{names[-1]} is no longer {names[0]}"
                yield Mutant(what, case.replace_stand_in(key, changed))


_CONFIG_KEYS = ("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "num_attention_heads", "n_head",
                "num_key_value_heads", "vocab_size", "intermediate_size", "num_experts",
                "num_local_experts")  # fmt: skip


def _age_config(case: Case) -> Iterator[Mutant]:
    for alias, key, it, _ in _read(case):
        config = config_of(it.side)
        for name in _CONFIG_KEYS:
            if isinstance(config.get(name), int):
                side = {**it.side, "config.json": json.dumps({**config, name: config[name] * 2}).encode()}
                what = f"{alias}: config.json says `{name}: {config[name] * 2}`, not {config[name]}"
                yield Mutant(what, case.replace_stand_in(key, it._replace(side=side)))


def _swap_inputs(case: Case) -> Iterator[Mutant]:
    for one, other in combinations(range(len(case.inputs)), 2):
        (a, path), (b, path_b) = case.inputs[one], case.inputs[other]
        if path != path_b:
            inputs = list(case.inputs)
            inputs[one], inputs[other] = (a, path_b), (b, path)
            yield Mutant(f"the inputs {a} and {b} swapped", case._replace(inputs=tuple(inputs)))


INPUT_MUTATORS: Iterable[Mutator] = (
    Mutator("NaN in an input", "not finite", _in_one(_spoil(float("nan")), "has a NaN")),
    Mutator("infinity in an input", "not finite", _in_one(_spoil(float("inf")), "has an infinity")),
    Mutator("a bit flipped in an input", "bit rot", _in_one(_flip_bit, "has a flipped bit")),
    Mutator("another model as input", "swapped inputs", _in_all(_vary, "other values of the same names")),
    Mutator("inputs swapped", "swapped inputs", _swap_inputs),
    Mutator("a square matrix transposed", "transposition", _in_one(_transpose_square, "transposed")),
    Mutator("a matrix transposed", "transposition", _in_one(_transpose, "transposed")),
    Mutator("a tensor too narrow", "wrong shape", _in_one(_narrow, "narrowed")),
    Mutator("an input of another width", "wrong shape", _widths),
    Mutator("an input of another dtype", "dtype", _in_all(_recast, "another dtype")),
    Mutator("an input rounded to bfloat16", "precision", _in_all(_round(BFLOAT16), "rounded to bfloat16")),
    Mutator("an input rounded to float16", "precision", _in_all(_round(FLOAT16), "rounded to float16")),
    Mutator("a shard missing", "tensors missing", _lose),
    Mutator("a layer missing", "tensors missing", _lose_layer),
    Mutator("a stale tied weight", "tied weights", _untie),
    Mutator("a stale config.json", "stale config", _age_config),
)
