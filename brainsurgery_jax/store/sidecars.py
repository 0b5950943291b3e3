"""The small files beside the weights (config, tokenizer, licence ...) that make a folder of tensors a model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import LOCKFILE, ORBAX_FILES, WEIGHT_SUFFIXES, stays_inside, suffix_of

MAX_SIDECAR = 64 << 20
"""Bytes; larger files are weights in some format that we do not know."""


def find_sidecars(directory: str | os.PathLike[str]) -> list[Path]:
    """The regular files at the top of a checkpoint that are neither weights, nor an index, nor hidden, nor large.

    Links that lead out of the checkpoint are left alone, so that a stranger's model cannot pull in private files. The
    provenance file of another run is left out: it would not be true of the new output.
    """
    with os_failures(directory, "list the folder"):
        return [path for path in sorted(Path(directory).iterdir()) if _is_sidecar(path)]


def _is_sidecar(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or name.endswith(".index.json") or suffix_of(name) in WEIGHT_SUFFIXES:
        return False
    if name == LOCKFILE or name in ORBAX_FILES:
        return False
    return path.is_file() and path.stat().st_size <= MAX_SIDECAR and stays_inside(str(path.parent), str(path))


def copy_sidecars(source_dir: str | os.PathLike[str], staging_dir: str | os.PathLike[str]) -> list[str]:
    """The names that were copied; a file that is in `staging_dir` already stays as it is."""
    copied: list[str] = []
    for path in find_sidecars(source_dir):
        target = Path(staging_dir, path.name)
        if not target.exists():
            with os_failures(path, f"copy the file to {target}"):
                shutil.copyfile(path, target)
            copied.append(path.name)
    return copied


def put_sidecars(staging_dir: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Writes files by name into a folder, also over those that are there."""
    for name, content in files.items():
        target = Path(staging_dir, name)
        with os_failures(target, "write the file"):
            target.write_bytes(content)


def sidecar_folder(checkpoint: str | os.PathLike[str]) -> Path | None:
    """The folder whose side files belong to a checkpoint: the folder itself, or the one that a single file lies in if a
    `config.json` marks it as a model's (what lies beside any other file need not belong to it)."""
    path = Path(parse_address(os.fspath(checkpoint)).path)
    if path.is_dir():
        return path
    return path.parent if (path.parent / "config.json").is_file() else None
