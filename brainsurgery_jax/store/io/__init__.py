"""Files, places and ranges of bytes: what every format is read and written with."""
