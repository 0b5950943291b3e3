"""A forward pass of decoders: tokens to logits, layer by layer, so that edits can prove that they keep the function.

Read in this order: `rotary` (angles from a config), `settings` (what layers compute, as types), `architecture` (a
config as settings), `weights` (the names of the weights, by the roles in `families`), `shapes` (theirs), `layers` (the
kernels: embedding, layer, head), `logits` (the graph of a model), `gap` (how far two models are apart). A layer is one
call on its own weights, so the engine holds one layer at a time.
"""
