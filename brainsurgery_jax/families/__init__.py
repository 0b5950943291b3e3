"""Families of models: the names of their tensors, and the keys of config.json for their number and sizes.

Read in this order: `model` (the types), `tables` (one file for each family), `names` (tensors by name without
numbers), `evidence` (sizes and counts from tensors), `solve` (the config that agrees with them), `compare` (config
against tensors); `adapters` does the same for the adapters of PEFT. Names and shapes are enough: nothing here uses
arrays.
"""
