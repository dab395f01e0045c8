"""Ground floor of the benchmark: models, edits, prompts, pictures, the store. It knows no method and no metric."""
