"""Questions with samples on the device: options, the message, limits, what is shown and what is reported."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.reasoning import PRESETS, Reasoning
from device_client.reply_limit import MAX_ROLLOUT_BYTES, ROLLOUT_BYTES, ReplyLimit
from device_client.rollouts import SampleStatus
from device_client.session import Session
from device_client.waiting import waiting
from tests.client.conftest import FakeServer
from tofc.errors import LimitError, MismatchError, ReplyError, UsageError
from tofc.v1 import tofc_pb2 as pb

PROGRESS = {"progress": {"round": 1, "rounds": 1, "ended": 1, "samples": 2}}


def test_presets_are_the_published_ones() -> None:
    assert dict(PRESETS) == {"low": (4,), "medium": (16,), "high": (32, 4)}
    assert Reasoning(pacore="high").message() == pb.Reasoning(rounds=[32, 4])
    assert Reasoning(pacore="7", token_budget=9, rollouts=True).message() == pb.Reasoning(
        rounds=[7], token_budget=9, rollouts=True
    )
    assert Reasoning(vote=5).message() == pb.Reasoning(vote=5)
    assert Reasoning().message() is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pacore": "4", "vote": 2}, "--pacore 4 and --vote 2 .* leave one of them out"),
        ({"pacore": "huge"}, "--pacore must be low, medium, high, or a number .* got 'huge'"),
        ({"pacore": "0"}, "--pacore must be .* got '0'"),
        ({"pacore": "-1"}, "--pacore must be .* got '-1'"),
        ({"pacore": "٤"}, "--pacore must be .* got '٤'"),
        ({"pacore": "9" * 5000}, "--pacore must be"),
        ({"vote": 0}, "--vote must be at least 1, got 0"),
        ({"vote": 3, "token_budget": -1}, "--token-budget must be 0 .* got -1"),
        ({"rollouts": True}, "--rollouts belongs to --pacore or --vote"),
        ({"token_budget": 5}, "--token-budget belongs to --pacore or --vote"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Reasoning(**values)


def test_a_server_that_would_ignore_or_refuse_samples_is_not_asked() -> None:
    Reasoning().check_limits(pb.Limits())
    Reasoning(pacore="high").check_limits(pb.Limits(samples=36))
    with pytest.raises(MismatchError, match=r"takes no samples \(--vote\); .*--samples") as refused:
        Reasoning(vote=2).check_limits(pb.Limits())
    assert refused.value.reason == "SAMPLES_NOT_TAKEN"
    with pytest.raises(LimitError, match="36 samples, this server allows 35; lower --pacore"):
        Reasoning(pacore="high").check_limits(pb.Limits(samples=35))


async def asked(server: FakeServer, picture: Path, reasoning: Reasoning, **options: Any) -> dict[str, Any]:
    async with Session(Target(address=f"127.0.0.1:{server.port}"), FakeEncoder()) as session:
        report = await session.ask([session.open(picture)], "how many?", reasoning=reasoning, **options).result()
        return report.to_json()


async def test_the_message_has_a_seed_and_the_time_that_is_left(server: FakeServer, small: Path) -> None:
    server.limits.samples = 16
    await asked(server, small, Reasoning(pacore="medium"), timeout_s=300.0)
    (ask,) = server.received("ask")
    assert ask.reasoning == pb.Reasoning(rounds=[16]) and ask.sampling.HasField("temperature") is False
    assert 0 < ask.sampling.seed < 2**14 and 200_000 < ask.deadline_ms <= 300_000
    await asked(server, small, Reasoning(), timeout_s=300.0)
    plain = server.received("ask")[1]
    assert not plain.HasField("reasoning") and not plain.HasField("sampling") and plain.deadline_ms == 0


async def test_votes_rollouts_and_sums_are_reported_only_where_they_were_asked_for(
    server: FakeServer, small: Path
) -> None:
    server.limits.samples = 16
    server.samples = [
        PROGRESS,
        {"rollout": {"round": 1, "sample": 1, "text": "two ", "new_tokens": 0}},
        {"rollout": {"round": 1, "sample": 0, "text": "3", "new_tokens": 1, "finish_reason": 1}},
        {"rollout": {"round": 1, "sample": 1, "text": "parts", "new_tokens": 2, "finish_reason": 2}},
    ]
    usage = pb.Usage(prompt_tokens=90, visual_tokens=72, new_tokens=4, prompts=2, samples=2, samples_used=1)
    server.done = {"votes": [pb.Vote(text="3", count=2)], "usage": usage}
    found = await asked(server, small, Reasoning(vote=2, rollouts=True))
    assert found["votes"] == [{"text": "3", "count": 2}]
    assert found["rollouts"] == [
        {"round": 1, "text": "3", "finish_reason": "stop", "new_tokens": 1},
        {"round": 1, "text": "two parts", "finish_reason": "length", "new_tokens": 2},
    ]
    assert found["usage"]["samples"] == 2 and found["usage"]["samples_used"] == 1
    assert found["features"] == 36, "of the picture, not of all prompts"
    server.samples, server.done = [], {}
    plain = await asked(server, small, Reasoning())
    assert not {"votes", "rollouts"} & plain.keys() and "samples" not in plain["usage"]


async def test_a_lost_link_begins_the_samples_anew(server: FakeServer, small: Path) -> None:
    server.limits.samples = 16
    server.samples = [{"rollout": {"round": 1, "sample": 0, "text": "3", "finish_reason": 1}}]
    server.lose = [1]
    found = await asked(server, small, Reasoning(pacore="1", rollouts=True))
    assert found["reconnects"] == 1 and [one["text"] for one in found["rollouts"]] == ["3"]


def test_how_far_the_samples_are_is_said_in_words() -> None:
    status = SampleStatus()
    assert status.doing == ""
    for round_, ended, said in ((1, 7, "7 of 16 samples, round 1 of 2"), (2, 15, "15 of 16 samples, round 2 of 2")):
        status.add(pb.Progress(round=round_, rounds=2, ended=ended, samples=16))
        assert status.doing == said
    status.add(pb.Progress(round=2, rounds=2, ended=16, samples=16))
    assert status.doing == "reading the samples"
    status.add(pb.Progress(round=1, rounds=1, ended=0, samples=4))
    assert status.doing == "0 of 4 samples"


async def test_progress_is_a_line_at_a_terminal_and_nothing_elsewhere(server: FakeServer, small: Path) -> None:
    server.limits.samples = 16
    server.samples = [{"progress": {"round": 1, "rounds": 1, "ended": 7, "samples": 16}}]
    for terminal in (True, False):
        shown = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        async with Session(Target(address=f"127.0.0.1:{server.port}"), FakeEncoder()) as session:
            answer = session.ask([session.open(small)], "how many?", reasoning=Reasoning(pacore="medium"))
            with waiting(session.encoder, shown, answer=answer):
                await answer.result()
        assert ("7 of 16 samples" in shown.file.getvalue()) is terminal  # type: ignore[attr-defined]


def test_endless_progress_and_endless_rollouts_end_the_link() -> None:
    limit = ReplyLimit(max_tokens=10, pictures=1, samples=2, rollouts=True)
    for _ in range(4):
        limit.count(pb.Progress())
    with pytest.raises(ReplyError, match="progress without end"):
        limit.count(pb.Progress())
    limit.count(pb.Rollout(text="x" * 1_999_999))
    with pytest.raises(ReplyError, match="more or longer samples"):
        limit.count(pb.Rollout(text="xx"))
    limit = ReplyLimit(max_tokens=10, pictures=1, samples=2, rollouts=True)
    for _ in range(2 * MAX_ROLLOUT_BYTES // ROLLOUT_BYTES):
        limit.count(pb.Rollout(round=1))
    with pytest.raises(ReplyError, match="more or longer samples"):
        limit.count(pb.Rollout(round=1))
