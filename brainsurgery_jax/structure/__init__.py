"""Edits of a model's structure: steps that change tensors and config together, from the table of its family.

Read in this order: `described` (the tensors of an alias by the names of their family), `axes` (which entries of an axis
belong to a head or a neuron), `patches` (what config.json says afterwards); then one module for each op. Nothing here
uses arrays: an op becomes steps that a plan could write itself.
"""
