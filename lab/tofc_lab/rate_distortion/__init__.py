"""Bytes at equal answers: every way to send a picture, on the same pictures, questions and decoder."""
