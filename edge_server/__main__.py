"""`python -m edge_server` is the command `edge-server`; leaves everything to `cli`."""

from edge_server.cli import app

app(prog_name="edge-server")
