"""``python -m cdc.cli`` is ``walvec``."""

from cdc.cli import main

main()
