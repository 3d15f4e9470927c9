"""What device and server share of the model: configuration, checkpoint, pictures, views, tower, projector and prompt.

Leaves computing answers to the server's engines.
"""
