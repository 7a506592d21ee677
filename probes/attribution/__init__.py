"""Which components carry the behaviour change between two checkpoints, and the proof of it."""
