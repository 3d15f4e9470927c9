"""The command `edge-server`, also as `python -m edge_server`.

Promises that Ctrl-C ends it quietly from its first moment, while libraries are still being imported, that its standard
streams are open, and that gRPC's own log stays out of what a person reads. Leaves everything else to `cli`.
"""

import os
import sys

from shared.streams import INTERRUPTED, prepare


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported; what matters is raised
    prepare()
    try:
        from edge_server.cli import app

        app(prog_name="edge-server")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
