"""Whether a tuned model's neurons and heads are in the base's order, and the model with that order restored."""
