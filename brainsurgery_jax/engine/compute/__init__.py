"""Computing values on host or accelerators: evaluation of pieces, compiled kernels, placement, batches, folds."""
