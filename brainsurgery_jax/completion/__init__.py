"""Completion of text that is being typed: steps in either form, for the prompt and other front ends."""
