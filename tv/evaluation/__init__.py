"""What a model does: tasks, text quality, a judge, and behaviour along θ + αT."""
