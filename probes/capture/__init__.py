"""Both models over the prompts: hooks, batches, shards, and the rows that they become."""
