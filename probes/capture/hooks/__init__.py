"""One capture plan (data), and the backends that run it."""
