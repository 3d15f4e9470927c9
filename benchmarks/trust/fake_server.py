"""`edge-server` with a backend that needs no weights: the same process, wire and limits, an answer takes 40 ms.

An answer is the CRC of packets and question, so that one that is wrong, or another question's, is found out.
"""

import sys
import zlib

from edge_server import __main__, backend
from edge_server.engine.base import Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes

STEP_S = 0.005  # a token; eight are an answer
QUEUE = 1000  # what comes before the engine bounds it


def main() -> None:
    def answer(prompt: Prompt) -> bytes:
        engine.prompts.clear()  # kept for tests
        return b"%08x" % zlib.crc32(prompt_bytes(prompt))

    engine = FakeEngine(answer, step_s=STEP_S, queue=QUEUE)
    backend.load = lambda settings: fake_backend(engine=engine)
    sys.argv[1:1] = ["serve"]
    __main__.main()


if __name__ == "__main__":
    main()
