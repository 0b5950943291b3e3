"""Deltas: what a checkpoint has that its base has not, and how to put both together."""
