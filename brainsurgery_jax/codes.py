"""Which tensors of a checkpoint are codes of quantized weights, and which hold their scales: by the names and dtypes
that tools write.

| names | written by |
|---|---|
| `x.weight`, `x.weight_scale_inv` (also `x_scale_inv` beside any `x`) | DeepSeek, transformers (block-scaled fp8) |
| `x.weight`, `x.weight_scale` | compressed-tensors, ModelOpt (fp8, int8) |
| `x_blocks`, `x_scales` | gpt-oss (MXFP4) |
| `x.qweight`, `x.qzeros`, `x.scales`, `x.g_idx` | GPTQ; without `g_idx` also AWQ |
| `x.weight_packed`, `x.weight_scale`, `x.weight_shape`, also `x.weight_zero_point` | compressed-tensors (int4, int8) |
| `x.weight`, `x.SCB` | bitsandbytes int8 |
| `x.weight`, `.absmax`, `.quant_map`, `.quant_state.bitsandbytes__nf4` after it | bitsandbytes nf4, and fp4 alike |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from brainsurgery_jax.dtypes import UINT8, DType

Has = Callable[[str], bool]
"""Whether a checkpoint has a tensor of a name."""


CONFIG_KEY = "quantization_config"
"""The key of config.json that says how weights are quantized."""

ACTIVATIONS = ("input_scale", "output_scale", "k_scale", "v_scale")
"""Last parts of the names of scales for activations, which lie beside codes and say nothing of them."""


class CodeFormat(StrEnum):
    """How weights are quantized."""

    SCALED = "scaled"
    MXFP4 = "mxfp4"
    PACKED = "packed"
    ROWS = "rows"
    TABLE = "table"
    PACKED_ROWS = "packed rows"

    @property
    def packed(self) -> bool:
        """Whether several codes share a word or their order is told elsewhere, so that shapes do not say which scale
        belongs to an element."""
        return self in (CodeFormat.PACKED, CodeFormat.PACKED_ROWS, CodeFormat.TABLE)


class CodesRule(NamedTuple):
    """A way to name what belongs to a quantized weight: how the name of the codes ends, and how those of the others
    end, in place of `stem`. `scales` come first."""

    format: CodeFormat
    ending: str
    stem: str
    result: str
    scales: str
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


RULES = (
    CodesRule(CodeFormat.SCALED, "", "", "", "_scale_inv"),
    CodesRule(CodeFormat.SCALED, "", "", "", "_scale", (), ("_zero_point",)),
    CodesRule(CodeFormat.MXFP4, "_blocks", "_blocks", "", "_scales"),
    CodesRule(CodeFormat.PACKED, ".qweight", "qweight", "weight", "scales", ("qzeros",), ("g_idx",)),
    CodesRule(CodeFormat.PACKED_ROWS, ".weight_packed", "weight_packed", "weight", "weight_scale", ("weight_shape",),
              ("weight_zero_point", "weight_g_idx")),
    CodesRule(CodeFormat.ROWS, ".weight", "weight", "weight", "SCB", (), ("weight_format",)),
    *(
        CodesRule(CodeFormat.TABLE, "", "", "", ".absmax", (".quant_map", f".quant_state.bitsandbytes__{table}"),
                  (".nested_absmax", ".nested_quant_map"))
        for table in ("nf4", "fp4")
    ),
)  # fmt: skip


PARTS = tuple(
    (rule.ending.removesuffix(rule.stem) + part, rule) for rule in RULES
    for part in (rule.scales, *rule.needed, *rule.optional)
)  # fmt: skip
"""How the names of what belongs to codes end, with the rule that says so."""

PART_ENDINGS = tuple(dict.fromkeys(ending for ending, _ in PARTS))


class Codes(NamedTuple):
    """A quantized weight by its names: of the codes, of the floats that they stand for, of the scales, and of what
    else belongs to it, by the endings of the rule."""

    format: CodeFormat
    name: str
    result: str
    scales: str
    others: Mapping[str, str]

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors without which nothing is known of the codes."""
        return (self.scales, *self.others.values())

    @property
    def has_zeros(self) -> bool:
        """Whether the code 0 may stand for another number than zero."""
        return self.format.packed or "_zero_point" in self.others

    @property
    def parts_that_count(self) -> tuple[str, ...]:
        """The parts without which floats would be others; a note on the order of bytes is none."""
        return (self.scales, *(part for ending, part in self.others.items() if ending != "weight_format"))


def may_be_codes(name: str, dtype: DType) -> bool:
    """Whether a tensor may hold codes, from its dtype: a quick look before the others."""
    return dtype.bits == 8 or name.endswith(("qweight", "weight_packed"))


def can_hold_codes(dtype: DType) -> bool:
    """Whether a tensor may hold codes under any name: bytes, or words of several codes."""
    return dtype.bits == 8 or (dtype.bits == 32 and dtype.is_signed)


def find_codes(name: str, has: Has) -> Codes | None:
    """The quantized weight whose codes a tensor holds, if others stand beside it that say so. Its dtype is not looked
    at: see `fits`."""
    for rule in RULES:
        if name.endswith(rule.ending):
            stem = name.removesuffix(rule.stem) if rule.stem else name
            if has(stem + rule.scales) and all(has(stem + ending) for ending in rule.needed):
                others = {e: stem + e for e in (*rule.needed, *rule.optional) if has(stem + e)}
                return Codes(rule.format, name, stem + rule.result, stem + rule.scales, others)
    return None


def find_codes_beside(part: str, has: Has) -> Codes | None:
    """The quantized weight whose scales a tensor holds, or what else belongs to its codes. See `find_codes`."""
    if not part.endswith(PART_ENDINGS):  # of nearly all tensors this is all that is asked
        return None
    for ending, rule in PARTS:
        name = part.removesuffix(ending) + rule.ending
        if part.endswith(ending) and has(name):
            codes = find_codes(name, has)
            if codes is not None and part in codes.parts:
                return codes
    return None


def fits(codes: Codes, dtype: DType) -> bool:
    """Whether a tensor of a dtype can hold the codes of its format."""
    match codes.format:
        case CodeFormat.SCALED:
            return dtype.bits == 8 and (dtype.is_float or dtype.is_signed)
        case CodeFormat.MXFP4 | CodeFormat.TABLE:
            return dtype == UINT8
        case CodeFormat.ROWS:
            return dtype.bits == 8 and dtype.is_signed
        case CodeFormat.PACKED | CodeFormat.PACKED_ROWS:
            return dtype.bits == 32 and dtype.is_signed


def quantized_among(dtypes: Mapping[str, DType]) -> tuple[Codes, ...]:
    """The quantized weights among tensors, which are given by name with their dtypes."""
    found = ((find_codes(n, dtypes.__contains__), dtype) for n, dtype in dtypes.items() if may_be_codes(n, dtype))
    return tuple(codes for codes, dtype in found if codes is not None and fits(codes, dtype))


def describe_floats(config: Mapping[str, object]) -> dict[str, object]:
    """A config.json that says nothing of quantized weights."""
    return {key: value for key, value in config.items() if key != CONFIG_KEY}


_LISTS_OF_FLOATS = (
    "modules_to_not_convert", "ignore", "ignored_layers", "llm_int8_skip_modules", "exclude_modules", "exclude",
    "skip_modules",
)  # fmt: skip
"""What the key of a `quantization_config` is called that lists the modules which are not quantized."""


def key_of_floats(settings: Mapping[str, object]) -> str:
    """The key of a `quantization_config` that lists the modules which are not quantized: the one that it has, else the
    one of its method."""
    usual = {"compressed-tensors": "ignore", "bitsandbytes": "llm_int8_skip_modules"}
    default = "ignore" if "config_groups" in settings else usual.get(str(settings.get("quant_method")))
    there = (key for key in _LISTS_OF_FLOATS if isinstance(settings.get(key), list))
    return next(there, default or _LISTS_OF_FLOATS[0])


def part_beside(codes: Codes, part: str, name: str) -> str:
    """The name of the scales (or of another part) of codes that are called `name`, by the pattern of the names of
    others."""
    if part.startswith(codes.name):
        return name + part[len(codes.name) :]
    pairs = enumerate(zip(codes.name, part, strict=False))
    shared = next((at for at, (a, b) in pairs if a != b), min(len(codes.name), len(part)))
    return name.removesuffix(codes.name[shared:]) + part[shared:]


# --- Blocks that share a scale ----------------------------------------------------------------------------------------

Grid = tuple[int, ...]
"""How many scales there are along each axis of a tensor of codes."""

Block = tuple[int, int]
"""How many rows and columns share a scale."""

USUAL_BLOCK: Block = (128, 128)
"""The rows and columns that share a scale in most checkpoints."""


def usual_block(config: object) -> Block:
    """The rows and columns that share a scale, as a config.json says or most checkpoints have it."""
    settings = config.get(CONFIG_KEY) if isinstance(config, Mapping) else None
    match settings.get("weight_block_size") if isinstance(settings, Mapping) else None:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return USUAL_BLOCK


def find_grid(
    codes: Sequence[int], scales: Sequence[int], given: Block | None = None, usual: Block = USUAL_BLOCK
) -> tuple[Grid, Block] | None:
    """The shape of scales as [..., a, b] beside codes [..., m, n], and how many rows and columns share one: as given,
    else the usual, if shapes allow that. None if shapes do not belong together."""
    if len(codes) < 2:
        return None
    *lead, m, n = codes
    one = (1,) * len(lead)
    candidates: list[tuple[Grid, Grid]] = [
        ((*one, 1, 1), ()), ((*one, 1, 1), (1,)), ((*lead, m, 1), (*lead, m)), ((*lead, 1, 1), tuple(lead)),
        ((*lead, 1, 1), (*lead, 1)),  # of matrices with a list of one scale each that were stacked
    ]  # fmt: skip
    grid = next((grid for grid, shape in candidates if tuple(scales) == shape and given is None), None)
    if grid is None and len(scales) == len(codes) and all(map(_divides, scales[:-2], lead)):
        grid = tuple(scales)
    sizes = None if grid is None else _sizes((m, n), grid[-2:], given, usual)
    return None if grid is None or sizes is None else (grid, sizes)


def _divides(scales: int, size: int) -> bool:
    return scales in (1, size)


def _sizes(shape: Sequence[int], grid: Sequence[int], given: Block | None, usual: Block) -> Block | None:
    """How many rows and columns share a scale; None if that cannot be told."""
    made = []
    for axis, (size, count) in enumerate(zip(shape, grid, strict=True)):
        fitting = (
            (given[axis],)
            if given
            else (size if count == 1 else 0, 1 if count == size else 0, usual[axis], size // count if count else 0)
        )
        own = next((each for each in fitting if each > 0 and -(-size // each) == count), None)
        if own is None:
            return None
        made.append(1 if count == 1 else own)
    return made[0], made[1]


def fitting_blocks(shape: Sequence[int], scales: Sequence[int]) -> tuple[Block, Block] | None:
    """The least and the largest blocks of which codes [..., m, n] have as many as there are scales; None if no size of
    blocks is right."""
    if len(scales) != len(shape) or not all(map(_divides, scales[:-2], shape[:-2])) or 0 in (*shape, *scales):
        return None
    pairs = [*zip(shape[-2:], scales[-2:], strict=True)]
    least = [-(-size // count) for size, count in pairs]
    if any(-(-size // each) != count for (size, count), each in zip(pairs, least, strict=True)):
        return None
    largest = [size if count == 1 else -(-size // (count - 1)) - 1 for size, count in pairs]
    return (least[0], least[1]), (largest[0], largest[1])


def rival_block(shape: Sequence[int], grid: Sequence[int], block: Block, usual: Block = USUAL_BLOCK) -> Block | None:
    """Another size of blocks, by powers of two, that matrices [..., m, n] with scales [..., a, b] may have had as well,
    where neither is the usual one; None if there is none."""
    rivals = [
        size if count in (1, rows) or size == customary else next(_powers_for(rows, count), size)
        for rows, count, size, customary in zip(shape[-2:], grid[-2:], block, usual, strict=True)
    ]
    return None if tuple(rivals) == block else (rivals[0], rivals[1])


def _powers_for(size: int, count: int) -> Iterator[int]:
    """The powers of two of which so many cover a size."""
    powers = (1 << at for at in range(1, size.bit_length()))
    return (each for each in powers if -(-size // each) == count)
