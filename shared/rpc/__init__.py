"""The wire: generated code, channels and their options, errors, the token check.

Leaves to others what travels over it: sessions live in the two halves.
"""
