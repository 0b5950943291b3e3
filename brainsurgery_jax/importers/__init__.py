"""Configurations of other tools, as plans."""
