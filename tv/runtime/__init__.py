"""How work is done: progress, processes, files that are whole or absent, what registers itself."""
