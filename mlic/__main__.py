"""`python -m mlic` is the same program as `mlic`."""

from mlic.cli import main

main()
