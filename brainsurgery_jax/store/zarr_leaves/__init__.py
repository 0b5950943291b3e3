"""Trees of zarr arrays, a folder a leaf."""
