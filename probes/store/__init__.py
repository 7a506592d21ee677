"""A run on disk: its tables, how they are written whole, read, and asked in SQL."""
