"""Checkpoints in other places than this machine, read by byte ranges: only what a plan needs is fetched."""
