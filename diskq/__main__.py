"""`python -m diskq` is the command line."""

from .cli import main

main()
