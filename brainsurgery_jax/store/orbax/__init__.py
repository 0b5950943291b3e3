"""Checkpoints of orbax."""
