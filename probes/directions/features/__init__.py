"""Sparse features of the change: crosscoders, SAEs of Δh and public dictionaries, beside the same of null pairs."""
