"""Fuzz targets of whatever reads a stranger's file: a file each, with a `target(data)` and the SEEDS it starts from."""

NAMES = ("suite", "prompts", "logs", "index", "header")
