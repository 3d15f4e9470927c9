"""Bytes at equal answers: every way to send a picture, over the same pictures, questions and decoder."""
