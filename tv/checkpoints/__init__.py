"""Where weights come from: files, live models, GGUF, adapters and tuning vectors, opened lazily."""
