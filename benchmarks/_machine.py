"""What was measured on: figures without it mean little."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("jax", "jaxlib", "numpy", "safetensors", "torch")


def facts() -> dict[str, Any]:
    """Processor, cores that may be used, memory, and the versions that matter; a package that is missing has None."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as info:
        found = (line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
        return next(found, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
