"""What a tuning vector is: norms, ranks, and how it lies against the pretrained subspaces, beside the nulls."""
