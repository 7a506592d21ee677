"""Where a new user starts: the demo, and a suite written for a pair and its prompts."""
