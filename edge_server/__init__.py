"""The server: answers questions about pictures over gRPC.

Pictures arrive as packets of features; with `--take-images` also as image files.
"""
