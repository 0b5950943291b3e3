"""Change neural-network checkpoints by writing a plan: checked from headers, run as pure JAX functions, streamed.

```python
import brainsurgery_jax as bs

plan = bs.load("plan.yaml", "rank=16")
plan.check()
plan.run()
params = plan.apply(params)
tree = bs.open("model/")
```
"""

from typing import TYPE_CHECKING, Any

from brainsurgery_jax.version import __version__

if TYPE_CHECKING:
    from brainsurgery_jax.api import Explanation, Plan, Report, check, explain, load, run
    from brainsurgery_jax.auditing.audit import Audit, audit
    from brainsurgery_jax.checkpoint import Checkpoint, open
    from brainsurgery_jax.comparison import Difference, diff
    from brainsurgery_jax.comparison.logits import compare_logits
    from brainsurgery_jax.conversion import convert
    from brainsurgery_jax.errors import Diagnostic, PlanError, Stopped, StoreError
    from brainsurgery_jax.forward.gap import LogitGap
    from brainsurgery_jax.interop import save
    from brainsurgery_jax.looking.fingerprint import fingerprint
    from brainsurgery_jax.looking.heat_maps import HeatMap, heat_map
    from brainsurgery_jax.looking.histograms import Histogram, histogram
    from brainsurgery_jax.looking.spectra import Spectrum, spectrum
    from brainsurgery_jax.looking.stats import stats
    from brainsurgery_jax.numerics.moments import TensorStats
    from brainsurgery_jax.plots.page import report
    from brainsurgery_jax.plugins import register
    from brainsurgery_jax.provenance.blame import Blame, blame
    from brainsurgery_jax.provenance.verification import Verification, replay, verify
    from brainsurgery_jax.session import Session

_ERRORS = ("Diagnostic", "PlanError", "Stopped", "StoreError")
_PLACES = {
    **dict.fromkeys(_ERRORS, "errors"), "Difference": "comparison", "diff": "comparison",
    "compare_logits": "comparison.logits", "LogitGap": "forward.gap", "convert": "conversion",
    "Audit": "auditing.audit", "audit": "auditing.audit",
    "Checkpoint": "checkpoint", "open": "checkpoint", "save": "interop", "register": "plugins", "Session": "session",
    "TensorStats": "numerics.moments", "stats": "looking.stats", "fingerprint": "looking.fingerprint",
    "Spectrum": "looking.spectra", "spectrum": "looking.spectra",
    "Histogram": "looking.histograms", "histogram": "looking.histograms",
    "report": "plots.page",
    "Blame": "provenance.blame", "blame": "provenance.blame",
    **dict.fromkeys(("Verification", "replay", "verify"), "provenance.verification"),
    "HeatMap": "looking.heat_maps", "heat_map": "looking.heat_maps",
}  # fmt: skip

__all__ = [
    "Audit",
    "Blame",
    "Checkpoint",
    "Diagnostic",
    "Difference",
    "Explanation",
    "HeatMap",
    "Histogram",
    "LogitGap",
    "Plan",
    "PlanError",
    "Report",
    "Session",
    "Spectrum",
    "Stopped",
    "StoreError",
    "TensorStats",
    "Verification",
    "__version__",
    "audit",
    "blame",
    "check",
    "compare_logits",
    "convert",
    "diff",
    "explain",
    "fingerprint",
    "heat_map",
    "histogram",
    "load",
    "open",
    "register",
    "replay",
    "report",
    "run",
    "save",
    "spectrum",
    "stats",
    "verify",
]


def __getattr__(name: str) -> Any:
    # The API is imported at its first use: the command's `--help` and `inspect` answer without the registry of ops.
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'brainsurgery_jax' has no attribute '{name}'")
    return getattr(import_module(f"brainsurgery_jax.{_PLACES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
