"""Measures of activations: tensors in, tensors out."""
