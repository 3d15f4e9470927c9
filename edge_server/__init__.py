"""The server half: streams in, text out; it never sees a picture, only what a device kept of it."""
