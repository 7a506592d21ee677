"""How finely path integrates, unless a suite says otherwise."""

#: Nodes to begin with; while the shares of a domain do not add up, its prompts get more, each up to MOST_NODES.
NODES, MOST_NODES = 4, 64
#: The completeness gap that is good enough: Σ_prompts |Σ shares − change| / Σ_prompts |change|.
TOLERANCE = 0.01
