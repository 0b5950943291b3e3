"""Plans: YAML with places, merged and overridden, parsed against the registry of ops; every mistake at once."""
