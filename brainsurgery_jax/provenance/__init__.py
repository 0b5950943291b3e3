"""Where an output comes from: lock files, and what is checked and told with them."""
