"""The process that attacks: `python -m benchmarks.trust.attacker NAME PORT SECONDS SEED MODEL_ID CODEC_ID`.

Promises to print counts of what it did, as JSON. Leaves the attacks to `attacks`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from random import Random

from benchmarks.trust.attacks import ATTACKS, Assault
from tofc.v1 import tofc_pb2 as pb

QUESTIONS = 8


def main(name: str, port: str, seconds: str, seed: str, model_id: str, codec_id: str) -> None:
    def asks(first: int) -> bytes:
        numbers = range(first, first + QUESTIONS)
        asked = [pb.Ask(request=number, question="how many are there?") for number in numbers]
        return pb.SessionRequest(asks=asked).SerializeToString()

    hello = pb.SessionRequest(hello=pb.Hello(client_version="0", model_id=model_id, codec_id=codec_id))
    assault = Assault(
        port=int(port),
        seconds=float(seconds),
        rng=Random(int(seed)),
        hello=hello.SerializeToString(),
        asks=asks,
    )
    asyncio.run(ATTACKS[name](assault))
    print(json.dumps(assault.done))


if __name__ == "__main__":
    main(*sys.argv[1:])
