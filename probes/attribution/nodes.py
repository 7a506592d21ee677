"""How finely path integrates, unless a suite says otherwise."""

#: Nodes to begin with; a prompt whose shares do not add up gets more, one by one, up to MOST_NODES.
NODES, MOST_NODES = 4, 64
#: The completeness gap that is good enough: Σ_prompts |Σ shares − change| / Σ_prompts |change|.
TOLERANCE = 0.01
