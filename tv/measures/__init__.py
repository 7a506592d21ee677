"""What a tuning vector is: norms, ranks, and how it aligns with the pretrained subspaces, beside the nulls."""
