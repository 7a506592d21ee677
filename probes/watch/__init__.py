"""Training watched as it goes: what T and behaviour are every few steps, and what watching costs."""
