"""``aiochroma`` and ``python -m aiochroma``."""

from __future__ import annotations

import sys

from aiochroma._errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    try:
        from aiochroma.cli.app import run
    except MissingExtraError as error:
        print(f"aiochroma: {error}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
