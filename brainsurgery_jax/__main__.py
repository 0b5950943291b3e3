"""`python -m brainsurgery_jax` is the command."""

from brainsurgery_jax.cli.app import main

if __name__ == "__main__":
    main()
