"""Engines: prompt embeddings in, token ids out."""
