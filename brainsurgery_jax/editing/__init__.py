"""Closed-form edits of weights, one method a file: facts (ROME, MEMIT, EMMET), directions, Fisher information, pruning
(Wanda, SparseGPT) and matching of units (Git Re-Basin). What they need of data is given as tensors."""
