"""The panels of the comparison, a family a file; each file registers its own."""
