"""The command line: a thin layer of text over the library."""
