"""The files beside the weights of a session that the step `config` names."""

from __future__ import annotations

from brainsurgery_jax.session import Session

_CONFIGS = "config.json", "adapter_config.json"
"""The files that are changed without being named."""


def json_files(session: Session) -> list[str]:
    """The names of the JSON files beside the weights of all aliases, but for the configs of models and adapters."""
    origins = dict.fromkeys(space.extras.origin for space in session.state.spaces.values())
    found = [session.world.side_files(origin) for origin in origins if origin is not None]
    names = {name for files in found if files is not None for name in files.copied if "/" not in name}
    return sorted(name for name in names if name.endswith(".json") and name not in _CONFIGS)
