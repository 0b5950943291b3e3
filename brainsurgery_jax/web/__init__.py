"""A browser workbench: look at checkpoints, write a plan, preview it, run it, compare. NiceGUI is the extra `web`."""
