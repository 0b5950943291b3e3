"""Rotary position embeddings: the frequencies that a config asks for, from numbers alone.

Sources: RoPE (arXiv 2104.09864), YaRN (arXiv 2309.00071), Llama 3.1's scaling as its config.json states it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, log, pi
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal

Settings = Mapping[str, object]


class Rotary(NamedTuple):
    """The angle per position of each pair of a head (none: no rotation), and what sine and cosine are multiplied by.
    `adjacent`: the two of a pair lie beside each other, else half of the rotated part apart."""

    frequencies: tuple[float, ...] = ()
    magnitude: float = 1.0
    adjacent: bool = False


def rotary_of(settings: Settings, head_dim: int, longest: int | None) -> Rotary:
    """The frequencies for heads of `head_dim` values.

    `settings`: `rope_theta`, `rope_type`, `partial_rotary_factor` and the keys of the type, as `rope_parameters` in a
    config.json. `longest`: `max_position_embeddings`. Raises `Refusal` for a type that is not known.
    """
    width = int(head_dim * number(settings, "partial_rotary_factor", 1.0)) // 2 * 2
    theta = number(settings, "rope_theta", 10000.0)
    plain = tuple(theta ** (-2 * i / width) for i in range(width // 2))
    match kind := settings.get("rope_type", settings.get("type", "default")):
        case "default" | None:
            return Rotary(plain)
        case "linear":
            factor = number(settings, "factor", 1.0)
            return Rotary(tuple(f / factor for f in plain))
        case "llama3":
            return Rotary(tuple(_by_wavelength(f, settings) for f in plain))
        case "yarn":
            return _yarn(plain, width, theta, settings, longest)
    known = "default, linear, llama3, yarn"
    raise Refusal("forward-unsupported", f"rotary embeddings of the type '{kind}' are not computed here ({known} are)",
                  hint="Compare the logits in the framework of the model, without this assert.")  # fmt: skip


def number(settings: Settings, key: str, default: float) -> float:
    """A number of a config; `default` where it has none."""
    value = settings.get(key)
    return float(value) if isinstance(value, int | float) else default


def _by_wavelength(frequency: float, settings: Settings) -> float:
    """Llama 3.1: long waves are stretched, short ones stay, those between are blended."""
    factor, old = number(settings, "factor", 8.0), number(settings, "original_max_position_embeddings", 8192)
    low, high = number(settings, "low_freq_factor", 1.0), number(settings, "high_freq_factor", 4.0)
    wavelength = 2 * pi / frequency
    if wavelength < old / high:
        return frequency
    if wavelength > old / low:
        return frequency / factor
    blend = (old / wavelength - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


def _yarn(plain: tuple[float, ...], width: int, theta: float, settings: Settings, longest: int | None) -> Rotary:
    factor = number(settings, "factor", 1.0)
    old = number(settings, "original_max_position_embeddings", longest or 4096)

    def pair_of(turns: float) -> float:
        """The pair that makes so many turns within the original context."""
        return width * log(old / (turns * 2 * pi)) / (2 * log(theta))

    low, high = pair_of(number(settings, "beta_fast", 32.0)), pair_of(number(settings, "beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    stretched = (min(max((i - low) / span, 0.0), 1.0) for i in range(len(plain)))
    frequencies = tuple(f / factor * s + f * (1 - s) for f, s in zip(plain, stretched, strict=True))
    return Rotary(frequencies, number(settings, "attention_factor", _yarn_magnitude(factor, settings)))


def _yarn_magnitude(factor: float, settings: Settings) -> float:
    all_dims = number(settings, "mscale_all_dim", 0.0)
    if not all_dims:
        return yarn_scale(factor, 1.0)
    return yarn_scale(factor, number(settings, "mscale", 1.0)) / yarn_scale(factor, all_dims)


def yarn_scale(factor: float, scale: float) -> float:
    """What YaRN multiplies by, to keep the spread of scores when the context is `factor` times as long."""
    return 0.1 * scale * log(factor) + 1.0 if factor > 1 else 1.0
