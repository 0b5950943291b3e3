"""Audit of a plan: plant errors into it and its inputs, and report which of its checks see them. See docs/audit.md."""
