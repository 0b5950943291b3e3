"""`python -m brainsurgery_jax` is the command, and `brainsurgery-jax` is the same."""

import sys

_INTERRUPTED = 130  # as `cli.exit_codes` has it, which may be what was to be imported


def main() -> None:
    """Run the command. Who stops it while it is imported is told so, without a traceback of Python."""
    try:
        from brainsurgery_jax.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
