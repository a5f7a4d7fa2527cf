"""The program `mlic`, also `python -m mlic`. It answers Ctrl-C from its first line on."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line and run it. An interrupt before it can answer one is answered here."""
    try:
        from mlic.cli import main as cli
    except KeyboardInterrupt:
        sys.stderr.write("Error: stopped.\nHint: run the same command again to resume.\n")
        sys.exit(6)
    cli.main()


if __name__ == "__main__":
    main()
