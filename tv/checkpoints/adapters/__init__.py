"""Adapters of peft as the tuned side: a directory or a live model, T as peft means it."""
