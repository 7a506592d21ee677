"""`python -m tv`."""

from tv.cli import main

main()
