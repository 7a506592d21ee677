"""Quantised checkpoints: which tensors of the files make up a weight, and the numbers that they stand for."""
