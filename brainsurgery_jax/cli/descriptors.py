"""How many files the command may have open: as many as the system allows, since checkpoints have many shards."""

from __future__ import annotations

from contextlib import suppress

_ENOUGH = 1 << 16


def raise_descriptor_limit() -> None:
    """Raise the soft limit of this process, which is 1,024 or 256 by habit, towards the hard one."""
    with suppress(ImportError, OSError, ValueError):  # Windows has none; macOS may refuse its own hard limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
