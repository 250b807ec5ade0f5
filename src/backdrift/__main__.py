"""`python -m backdrift`."""

from backdrift.cli import main

main()
