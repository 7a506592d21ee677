"""What `tv trajectory` reads of the checkpoints of one training: their order, their distances, their behaviour."""
