"""What is done with tuning vectors: scaled, merged, applied, written, turned into adapters, imitated by controls."""
