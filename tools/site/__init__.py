"""What builds the documentation site: hooks of MkDocs, and an extension that reads our docstrings."""
