"""gRPC between device and server: channels and servers with their options, TLS, tokens, errors.

Promises that both sides use the same definitions. Leaves sessions to them, and generated code to `tofc.v1`.
"""
