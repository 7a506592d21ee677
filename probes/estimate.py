"""What a run will take on disk."""
def estimate(suite, architecture, encoded): return {"tokens": 1}
def require_space(path, n): pass
