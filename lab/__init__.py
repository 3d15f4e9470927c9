"""Everything that happens before deployment: the nano world, training, evaluation, checkpoint splitting.

The only package that may import compressai or matplotlib. It knows nothing about serving.
"""
