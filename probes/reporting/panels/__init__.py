"""The panels of the report, a family a file; each file registers its own."""
