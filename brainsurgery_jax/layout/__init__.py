"""Reversible maps between the tensors of a Hugging Face checkpoint and those of another model library.

A layout is one YAML file: rules *names <-> names* with invertible ops between them. For a given config.json, all names,
shapes and ops are enumerated. Read in the order in which data flows: `expressions`, `templates`, `parse` (a file to a
`Layout`), `bind` (a layout and a config to a `BoundLayout`), `proof`.
"""
