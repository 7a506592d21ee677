"""Prompts as files, tokens and batches, and what a model answers to them."""
