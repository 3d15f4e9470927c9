"""Training of the index codec: a transform behind the projector, codebooks, and the context model of their indices."""
