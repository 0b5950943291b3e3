"""Numbers worth looking at, of checkpoints as they are."""
