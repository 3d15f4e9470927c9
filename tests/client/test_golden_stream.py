"""What a device sends is pinned to the byte: renaming a field or a class must not change the wire.

Needs no vision tower: packets of the fake encoder are hashes. A change that is meant (a new field, say) is written by
`python -m tests.client.test_golden_stream > tests/client/golden_stream.txt`, and shows in the diff.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from PIL import Image

from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.sampling import Sampling
from device_client.session import Session
from tests.client.conftest import FakeServer
from tofc.rpc.channel import bind, make_server
from tofc.v1 import tofc_pb2_grpc

GOLDEN = Path(__file__).with_name("golden_stream.txt")


async def conversation(folder: Path) -> list[str]:
    """Return every message that the device sent in one session, as hexadecimal bytes."""
    servicer, running = FakeServer(), make_server()
    tofc_pb2_grpc.add_TofcServiceServicer_to_server(servicer, running)
    port = bind(running, "127.0.0.1", 0)
    await running.start()
    Image.linear_gradient("L").resize((200, 160)).convert("RGB").save(folder / "small.png")
    try:
        async with Session(Target(address=f"127.0.0.1:{port}"), FakeEncoder(packet_bytes=20)) as session:
            picture = session.open(folder / "small.png")
            await session.ask([picture], "what is this?").result()
            told = [("what is this?", "yes to what is this?")]
            await session.ask([picture], "and why?", history=told).result()
            sampling = Sampling(max_tokens=9, temperature=0.5, top_p=0.9, top_k=40, seed=7)
            other = [("who is it?", "nobody")]
            await session.ask([picture], "really?", history=other, sampling=sampling, thinking=True).result()
    finally:
        await running.stop(0)
    return [message.hex() for message in servicer.wire[1:]]  # the first is Hello, which has the version


def test_what_a_device_sends_is_as_it_was(tmp_path: Path) -> None:
    assert asyncio.run(conversation(tmp_path)) == GOLDEN.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(asyncio.run(conversation(Path(name)))))
