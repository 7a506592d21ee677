"""Logs of other evaluations as files of prompts: every item as the model got it, and what it scored."""
