"""`edge-server` with a backend without weights; process, protocol and limits are the real ones. An answer takes 40 ms.

Promises that an answer is the CRC of packets and question, so that a wrong or mixed-up answer is detected. Leaves the
rest to `edge_server`.
"""

from __future__ import annotations

import sys
import zlib

from edge_server import __main__, backend
from edge_server.engine.base import Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes

STEP_S = 0.005  # for a token; an answer has eight
QUEUE = 1000  # never full: the server's admission limits it first


def main() -> None:
    def answer(prompt: Prompt) -> bytes:
        engine.prompts.clear()  # the fake engine keeps them for tests
        return b"%08x" % zlib.crc32(prompt_bytes(prompt))

    engine = FakeEngine(answer, step_s=STEP_S, queue=QUEUE)
    backend.load = lambda settings: fake_backend(engine=engine)
    sys.argv[1:1] = ["serve"]
    __main__.main()


if __name__ == "__main__":
    main()
