"""The lazy graph: interned expressions over leaves of checkpoints, with the rules for their shapes."""
