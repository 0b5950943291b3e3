"""How close is casting every tensor of a 2.5 GB checkpoint to copying its files?"""

from __future__ import annotations

from _answer import beside_copies
from _checkpoints import checkpoint

if __name__ == "__main__":
    beside_copies("cast", "cast all bf16 to f16", checkpoint("llama"))
