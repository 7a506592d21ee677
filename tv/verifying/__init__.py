"""Is this file what it claims to be: a base and ΔW merged, or another checkpoint, compared module by module."""
