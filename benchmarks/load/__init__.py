"""Many devices at once: questions and tokens a second, times to the first token, memory."""
