"""Training a codec for any checkpoint, without labels: to preserve the answers of the uncompressed model."""
