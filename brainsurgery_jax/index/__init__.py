"""Index arithmetic: boxes of tensors, ops that only move elements, and parts of a result. It touches no array."""
