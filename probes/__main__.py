"""`python -m probes`."""

from probes.cli import main

main()
