"""The context model: each component of each feature as a number of its own, predicted from those before it."""
