"""The pytest plugin: a test marked `probes_gate` holds where the rules of a run pass."""
