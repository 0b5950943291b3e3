"""Families of models: how their tensors are named, and which keys of config.json say how many and how large they are.

Read in this order: `model` (what a family is), `decoders` and `encoders` (the table), `names` (tensors by name without
numbers), `evidence` (what they say), `solve` (the config that would say the same), `compare` (config against tensors);
`adapters` does the same for the adapters of PEFT. Nothing here knows arrays: names and shapes are all it takes.
"""
