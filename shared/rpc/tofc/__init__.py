"""Generated from protos/; `python -m shared.rpc.generate` writes it again."""
