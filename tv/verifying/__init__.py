"""Is this file what it says: a base and ΔW merged, or another checkpoint, compared module by module."""
