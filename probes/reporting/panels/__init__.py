"""The panels of the report, one family per file; each file registers its panels."""
