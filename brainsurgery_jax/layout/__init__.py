"""Reversible maps between the tensors of a Hugging Face checkpoint and those of another model library.

A layout is one YAML file: rules *names <-> names* with invertible ops between them. Everything concrete is made by
enumeration for a given config.json: names, shapes, and the ops that lead from one to the other and back. Read in the
order in which data flows: `expressions`, `templates`, `parse` (a file to a `Layout`), `bind` (a layout and a config to
`Bound`), `proof`.
"""
