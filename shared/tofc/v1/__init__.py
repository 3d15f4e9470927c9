"""Generated from protos/; `python -m tofc.rpc.generate` writes it again."""
