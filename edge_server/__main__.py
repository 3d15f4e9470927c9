"""The command `edge-server`, also as `python -m edge_server`.

Promises that Ctrl-C ends it quietly at any moment, also while libraries are imported, that its standard streams are
open, and that gRPC's own log lines do not appear on stderr. Leaves everything else to `cli`.
"""

from __future__ import annotations

import os
import sys

from tofc.streams import INTERRUPTED, prepare


def main() -> None:
    """Run the command."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported; gRPC also raises what it would log
    prepare()
    try:
        from edge_server.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
