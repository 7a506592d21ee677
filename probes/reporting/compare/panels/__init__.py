"""The panels of the comparison, one family per file; each file registers its panels."""
