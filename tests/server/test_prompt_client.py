"""Whose a prompt is, and what it is about: engines share cached rows by it."""

from __future__ import annotations

from pathlib import Path

from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import picture_id
from tofc.rpc.security import ClientSecurity


async def test_sessions_of_one_device_are_one_client_and_others_are_not(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("kitchen-0123456789abcdef kitchen\nnobody-0123456789abcdef\n")
    engine = FakeEngine(lambda prompt: prompt_bytes(prompt))
    server = await serve(fake_backend(engine=engine), token_file=tokens)
    for token in ("kitchen", "kitchen", "nobody", "nobody"):
        client = connect(server, metadata=ClientSecurity(token=f"{token}-0123456789abcdef").metadata)
        await client.hello()
        for request in (1, 2):
            await client.ask(request, "why")
            await client.answer(request)
    clients = [prompt.client for prompt in engine.prompts]
    assert clients[:4] == ["device kitchen"] * 4
    assert clients[4] == clients[5] != clients[6] == clients[7]
    assert len(set(clients)) == 3 and "" not in clients


async def test_a_prompt_names_its_pictures_in_order(serve: Serve, connect: Connect) -> None:
    engine = FakeEngine(lambda prompt: prompt_bytes(prompt))
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    for ref, name in ((1, "street"), (2, "house")):
        await client.picture(ref, name)
        await client.view(ref, 0, name.encode())
        await client.taken(ref, 0)
    for request, refs in ((1, (2, 1)), (2, (1,)), (3, ())):
        await client.ask(request, "why", refs)
        await client.answer(request)
    street, house = picture_id("street").hex(), picture_id("house").hex()
    assert [prompt.pictures for prompt in engine.prompts] == [f"{house} {street}", street, ""]
