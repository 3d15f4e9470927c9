"""The seven sets: one module each, with the set's columns, prompts, extraction and score."""
