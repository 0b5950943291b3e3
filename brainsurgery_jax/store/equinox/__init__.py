"""Files of Equinox."""
