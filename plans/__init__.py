"""The recipes: plans that are installed with the package (`brainsurgery_jax.recipes`) and run by their names."""
