"""Directions and features: steering, linear probes, subspaces of Δh, sparse features, attention, distances."""
