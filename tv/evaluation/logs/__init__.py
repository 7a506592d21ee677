"""What other evaluations logged of both models, read as behaviour: lm-evaluation-harness samples, Inspect logs."""
