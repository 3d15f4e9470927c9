"""Chats as a device sends them: turns of any role, texts that end an answer, and what an older server does not know."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.conftest import Begin, FakeServer
from tofc.errors import LimitError, MismatchError, UsageError
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

TALK = [Turn(role="user", text="one"), Turn(role="assistant", text="yes"), Turn(role="user", text="two")]


@pytest.mark.parametrize(
    ("turns", "more"), [(TALK, {"stop": ["x"]}), ([Turn(role="user", text="which?", pictures=(6,))], {})]
)
async def test_a_server_that_is_older_than_chats_is_not_asked(
    server: FakeServer, begin: Begin, turns: list[Turn], more: dict[str, Any]
) -> None:
    """It would ignore where pictures are and what ends an answer."""
    with pytest.raises(MismatchError, match="update it") as refused:
        await begin().converse([], turns, **more).result()
    assert refused.value.reason == "CHAT_NOT_TAKEN" and server.received("ask") == []


async def test_a_budget_is_not_sent_to_a_server_that_does_not_say_that_its_model_thinks(
    server: FakeServer, begin: Begin
) -> None:
    report = await begin().converse([], TALK, thinking_budget=5).result()
    assert report.answer == "yes to two"
    (asked,) = server.received("ask")
    assert not asked.HasField("thinking_budget") and not asked.places


async def test_a_chat_is_sent_as_it_is(server: FakeServer, begin: Begin) -> None:
    server.limits.stop_texts = 4
    turns = [Turn(role="system", text="be brief"), Turn(role="user", text="one"), Turn(role="user", text="größe?")]
    session = begin()
    await session.converse([], turns, stop=["a", "b"]).result()
    (asked,) = server.received("ask")
    assert [(turn.role, turn.text) for turn in asked.history] == [(pb.ROLE_SYSTEM, "be brief"), (pb.ROLE_USER, "one")]
    assert (asked.question, list(asked.stop)) == ("größe?", ["a", "b"])
    with pytest.raises(LimitError, match="5 texts that end an answer, this server allows 4"):
        await session.converse([], turns, stop=["1", "2", "3", "4", "5"]).result()
    with pytest.raises(UsageError, match="1 to 256 bytes"):
        session.converse([], turns, stop=[""])
