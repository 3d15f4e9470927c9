"""The command `device-client`, also as `python -m device_client`.

Promises that Ctrl-C ends it quietly from the start, even while libraries are imported, that its standard streams are
open, and that gRPC does not log to stderr. Leaves everything else to `program`.
"""

from __future__ import annotations

import os
import sys

from tofc.streams import INTERRUPTED, prepare


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported; errors are raised anyway
    prepare()
    try:
        from device_client.program import run

        run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
