"""Checkpoints on disk: sources that read boxes, planned writers, and publishing that is whole or not at all."""
