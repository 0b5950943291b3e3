"""Files of numpy."""
