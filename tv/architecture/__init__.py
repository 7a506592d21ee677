"""What a model consists of: the name of every matrix and of every place where a hook reads."""
