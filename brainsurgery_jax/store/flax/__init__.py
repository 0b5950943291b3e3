"""Files of msgpack, as flax writes them."""
