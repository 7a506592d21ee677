"""Activation space."""
