"""Everything that happens before deployment: nano's pictures, training, evaluation, and splitting checkpoints.

The only package that may import compressai or matplotlib. Of the server it uses only the decoder, `edge_server.engine`.
"""
