"""Rules on the numbers of a run, each with the smallest effect that matters: pass, fail, or cannot tell."""
