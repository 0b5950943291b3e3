"""Side files: what lies beside the weights (config, tokenizer, licence ...) and makes a folder of tensors a model.

Only names that model repositories use count, so that nothing private travels because it lies in the same folder:
`SIDE_FILES`, files and folders that side files name themselves, and code that a config names. docs/formats.md lists
them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import (
    ADAPTER_CONFIG,
    DELTA_MANIFEST,
    LOCKFILE,
    ORBAX_FILES,
    WEIGHT_SUFFIXES,
    holds_adapter,
    is_stock_weights,
    stays_inside,
    suffix_of,
)
from brainsurgery_jax.store.io.files import Place

MAX_SIDECAR = 64 << 20
"""Bytes; larger files are left out, whatever their name."""

SIDE_FILES: Mapping[str, tuple[str, ...]] = {
    "model": (
        "config.json", "configuration.json", "generation_config.json", "params.json", "model_index.json",
        "scheduler_config.json", "open_clip_config.json",
    ),
    "quantization": ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json"),
    "tokenizer": (
        "tokenizer*.json", "tokenizer.model*", "tekken.json", "*.tiktoken", "vocab.json", "vocab.txt", "vocab.bpe",
        "vocab.model", "vocab.spm", "vocab.tsv", "vocab-*.json", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "chat_template.json", "chat_template.jinja", "spiece.model", "spm.model",
        "sentencepiece*.model", "*.spm", "bpe.codes", "dict.txt", "encoder.json", "normalizer.json", "emoji.json",
        "entity_vocab.json",
    ),
    "processor": ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    "sentence-transformers": (
        "modules.json", "sentence_*_config.json", "config_sentence_transformers.json", "router_config.json",
        "config_setfit.json",
    ),
}  # fmt: skip
"""Patterns of the names of side files, by what they are for. `adapter_config.json` counts where an adapter lies."""

DOCUMENTS = ("readme", "license", "licence", "notice", "copying", "citation", "model_card", "use_policy")
"""Names of documents, in any case; what may follow is a dash and more, and the suffix of a text."""

TEMPLATES = "additional_chat_templates"
"""A folder of chat templates."""

_TEXTS = ("md", "txt", "rst", "html", "pdf", "cff", "bib", "json", "ya?ml", "[a-z]{2}\\.md")  # the last: `README.de.md`
_DOCUMENT = re.compile(rf"(?:{'|'.join(DOCUMENTS)})(?:-[^.]*)?(?:\.(?:{'|'.join(_TEXTS)}))?", re.IGNORECASE)
_NAMING = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
           "tokenizer_config.json", "video_preprocessor_config.json")  # fmt: skip
"""Configs that may name code, in `auto_map`."""
MODULES, INDEX = "modules.json", "model_index.json"
"""Files that name folders of side files."""

READ_TO_FIND = (*_NAMING, MODULES, INDEX)
"""Side files that are read to find the others; Python files are, too."""

_CODE = re.compile(r"(?:(?:\w|[-./])+--)?(\w+)\.\w+")
_RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+)|from\s+\.\s+import\s+([\w, ]+))", re.M)


Bring = Callable[[Iterable[str]], None]
"""Makes sure that files of a folder, which has stand-ins for them, are there before they are read."""


def all_there(names: Iterable[str]) -> None:
    """The files of a local folder are there."""


class SideFiles(NamedTuple):
    """The side files of a folder, as relative paths: those that travel, and visible small files that do not."""

    folder: str
    copied: tuple[str, ...]
    left: tuple[str, ...] = ()
    bring: Bring = all_there

    @property
    def of_floats(self) -> SideFiles:
        """Without those that describe quantized weights."""
        names = SIDE_FILES["quantization"]
        return self._replace(copied=tuple(name for name in self.copied if name not in names))


def find_side_files(folder: str | os.PathLike[str]) -> SideFiles:
    """What travels with the checkpoint in a folder, and what is left out.

    Links that lead out of the folder are left alone, so that a stranger's model cannot pull in private files. Weights,
    indexes, hidden files, and the provenance file of another run are neither.
    """
    place = os.fspath(folder)
    with os_failures(place, "list the folder"):
        top = sorted(os.listdir(place))
        ours = side_names(place, top)
        inner = [f"{f}/{n}" for f in side_folders(place) for n in sorted(os.listdir(os.path.join(place, f)))]
        travel = [*(n for n in top if n in ours), *(p for p in inner if in_side_folder(os.path.basename(p)))]
        others = [*(n for n in top if n not in ours and _is_candidate(n)), *(p for p in inner if p not in travel)]
        copied = [path for path in travel if _is_small(place, path)]
        left = [path for path in others if _is_small(place, path)]
        too_large = [path for path in travel if path not in copied and _is_inner_file(place, path)]
    return SideFiles(place, tuple(copied), (*left, *too_large))


def side_names(folder: str, names: Iterable[str]) -> frozenset[str]:
    """Those of the names at the top of a folder that are side files, by their names or since a config names them."""
    listed = frozenset(names)
    adapter = {ADAPTER_CONFIG} if holds_adapter(listed) else set()
    return frozenset(n for n in listed if is_side_name(n)) | (listed & (adapter | _code_of(folder, listed)))


def is_side_name(name: str) -> bool:
    """Whether model repositories have a side file of that name."""
    if name.startswith(".") or suffix_of(name) in WEIGHT_SUFFIXES or name.endswith(".index.json"):
        return False
    listed = (pattern for patterns in SIDE_FILES.values() for pattern in patterns)
    return is_document(name) or any(fnmatchcase(name, pattern) for pattern in listed)


def is_document(name: str) -> bool:
    """Whether a side file is a text for people: a model card, a licence and the like."""
    return _DOCUMENT.fullmatch(name) is not None


def is_of_tokenizer(name: str) -> bool:
    """Whether a side file belongs to the tokenizer: its words, its settings, and templates of chats."""
    return name.startswith(f"{TEMPLATES}/") or any(fnmatchcase(name, pattern) for pattern in SIDE_FILES["tokenizer"])


def in_side_folder(name: str) -> bool:
    """Whether a file belongs in a folder that a side file names: its own side files, weights, and templates."""
    return is_side_name(name) or is_stock_weights(name) or suffix_of(name) == ".jinja"


def side_folders(folder: str) -> tuple[str, ...]:
    """The folders that the side files of a folder name, as relative paths: the modules of sentence-transformers, the
    parts of a diffusers pipeline, and more chat templates."""
    modules = _json(folder, MODULES)
    named = [m.get("path") for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    index = _json(folder, INDEX)
    named += [key for key, value in index.items() if isinstance(value, list)] if isinstance(index, dict) else []
    return tuple(sorted({n for n in (*named, TEMPLATES) if isinstance(n, str) and _is_inner_folder(folder, n)}))


def _is_inner_folder(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    if not name or name != os.path.normpath(name) or os.path.isabs(name) or ".." in name.split(os.sep):
        return False
    return os.path.isdir(path) and not os.path.islink(path) and stays_inside(folder, path) and name != "."


def _is_candidate(name: str) -> bool:
    """Whether a file of that name could be taken for a side file: it is visible, and no part of a checkpoint."""
    if name.startswith(".") or name.endswith(".index.json") or suffix_of(name) in WEIGHT_SUFFIXES:
        return False
    return name not in (LOCKFILE, DELTA_MANIFEST) and name not in ORBAX_FILES


def _is_small(folder: str, name: str) -> bool:
    return _is_inner_file(folder, name) and Path(folder, name).stat().st_size <= MAX_SIDECAR


def _is_inner_file(folder: str, name: str) -> bool:
    path = Path(folder, name)
    return path.is_file() and stays_inside(folder, str(path))


# --- Code that a config names -----------------------------------------------------------------------------------------


def _code_of(folder: str, names: frozenset[str]) -> set[str]:
    """The Python files that configs name, and those that these import from beside them, as transformers looks for
    them."""
    waiting = [f"{module}.py" for module in _list_named_modules(folder)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in names and name not in found and _is_small(folder, name):
            found.add(name)
            waiting += [f"{module}.py" for module in _list_imports(Path(folder, name))]
    return found


def _list_named_modules(folder: str) -> Iterator[str]:
    for config in _NAMING:
        table = _json(folder, config)
        mapped = table.get("auto_map") if isinstance(table, dict) else None
        values = mapped.values() if isinstance(mapped, dict) else [mapped]
        for value in (v for entry in values for v in (entry if isinstance(entry, list) else [entry])):
            if isinstance(value, str) and (named := _CODE.fullmatch(value)) and "--" not in value:
                yield named[1]
    modules = _json(folder, MODULES)
    for module in modules if isinstance(modules, list) else ():
        kind = module.get("type") if isinstance(module, dict) else None
        if isinstance(kind, str) and (named := _CODE.fullmatch(kind)):
            yield named[1]


def _list_imports(path: Path) -> Iterator[str]:
    with os_failures(path, "read the file"):
        text = read_regular(path).decode(errors="replace")
    for groups in _RELATIVE_IMPORT.findall(text):
        yield from (name.strip() for group in groups for name in group.split(",") if name.strip())


def _json(folder: str, name: str) -> Any:
    """What a small JSON file says; None if it is not there, or is none."""
    if not _is_small(folder, name):
        return None
    path = os.path.join(folder, name)
    try:
        with os_failures(path, "read the file"):
            return parse_json(read_regular(path))
    except ValueError:
        return None


# --- Copying ----------------------------------------------------------------------------------------------------------


def copy_side_files(found: SideFiles, place: Place) -> None:
    """Copies the side files that travel; a file that is in the place already stays as it is."""
    there = set(place.list())
    missing = [name for name in found.copied if name not in there]
    found.bring(missing)
    for name in missing:
        source = os.path.join(found.folder, name)
        with os_failures(source, "read the file"):
            content = read_regular(source)
        place.write(name, content)


def put_sidecars(place: Place, files: Mapping[str, bytes]) -> None:
    """Writes files by name into a folder, also over those that are there."""
    for name, content in files.items():
        place.write(name, content)


def sidecar_folder(checkpoint: str | os.PathLike[str]) -> Path | None:
    """The folder whose side files belong to a checkpoint: the folder itself, or the one that a single file lies in if a
    `config.json` marks it as a model's (what lies beside any other file need not belong to it)."""
    path = Path(parse_address(os.fspath(checkpoint)).path)
    if path.is_dir():
        return path
    return path.parent if (path.parent / "config.json").is_file() else None
