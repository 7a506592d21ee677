"""Long, re-runnable uses of the program, with their tables."""
