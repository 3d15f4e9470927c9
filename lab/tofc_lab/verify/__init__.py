"""Checks of a checkpoint against implementations that share no code with the device and the server."""
