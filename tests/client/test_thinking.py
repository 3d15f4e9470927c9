"""Thinking apart from the answer: in deltas, in reports, on the two streams of the command."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from device_client.fake import FakeEncoder
from device_client.sampling import Sampling
from device_client.transcript import Delta, Transcript
from tests.client.conftest import Begin, FakeServer
from tests.client.test_cli import ask, command
from tofc.errors import UsageError
from tofc.terminal import note_dim
from tofc.v1 import tofc_pb2 as pb

THOUGHT: list[dict[str, Any]] = [
    {"text": "a 4,", "thinking": True},
    {"text": " a 2\n", "thinking": True},
    {"text": "4"},
    {"text": "2"},
]
LATE: list[dict[str, Any]] = [{"text": "a 4, a 2"}, {"restart": True}, {"text": "42"}]
CUT = {"finish_reason": pb.FINISH_REASON_LENGTH, "unanswered": True}


@pytest.mark.parametrize("wanted", [False, True])
async def test_deltas_and_report(server: FakeServer, begin: Begin, small: Path, wanted: bool) -> None:
    server.tokens = THOUGHT
    session = begin()
    answer = session.ask([session.open(small)], "?", thinking=wanted)
    deltas = [delta async for delta in answer]
    thought = [Delta(text="a 4,", thinking=True), Delta(text=" a 2\n", thinking=True)]
    assert deltas == [*(thought if wanted else []), Delta(text="4"), Delta(text="2")]
    assert server.received("ask")[0].thinking is wanted
    report = answer.report
    assert report is not None and report.answer == "42" and not report.unanswered
    assert report.thinking == ("a 4, a 2" if wanted else None)
    assert ("thinking" in report.to_json()) is wanted
    assert report.usage["thinking_tokens"] == 2


async def test_what_was_no_answer_is_withdrawn(server: FakeServer, begin: Begin) -> None:
    server.tokens = LATE
    for wanted in (False, True):
        answer = begin().ask([], "?", thinking=wanted)
        deltas = [delta async for delta in answer]
        assert deltas == [Delta(text="a 4, a 2"), Delta(text="", restart=True), Delta(text="42")]
        assert answer.report is not None and answer.report.answer == "42"
        assert answer.report.thinking == ("a 4, a 2" if wanted else None)


@pytest.mark.parametrize("lost_after", range(5))
@pytest.mark.parametrize("speech", [THOUGHT, LATE], ids=["thought", "late"])
async def test_nothing_is_shown_twice_after_a_lost_link(
    server: FakeServer, begin: Begin, speech: list[dict[str, Any]], lost_after: int
) -> None:
    server.tokens, server.lose = speech, [lost_after]
    answer = begin().ask([], "?", thinking=True)
    shown = {False: "", True: ""}
    async for delta in answer:
        if delta.replaces:
            shown[delta.thinking] = ""
        if delta.restart:
            shown[False] = ""
        shown[delta.thinking] += delta.text
    report = answer.report
    assert report is not None and shown[False] == report.answer == "42" and report.thinking == "a 4, a 2"
    if speech is THOUGHT:
        assert shown[True] == "a 4, a 2\n"


def take(transcript: Transcript, *tokens: dict[str, Any]) -> list[Delta]:
    return [delta for token in tokens for delta in transcript.add(pb.Token(**token))] + transcript.end()


def test_asked_again_other_thinking_begins_again() -> None:
    transcript = Transcript()
    take(transcript, {"text": "a cat", "thinking": True})
    transcript.start_attempt()
    assert take(transcript, {"text": "a dog", "thinking": True}, {"text": "dog"}) == [
        Delta(text="a dog", thinking=True, replaces=True),
        Delta(text="dog"),
    ]
    transcript.start_attempt()
    assert take(transcript, {"text": "a", "thinking": True}, {"text": "dog"}) == [
        Delta(text="a", thinking=True, replaces=True)
    ]
    assert (transcript.thinking.text, transcript.answer.text) == ("a", "dog")


def test_thinking_on_both_sides_of_a_withdrawn_answer_keeps_its_order() -> None:
    transcript = Transcript()
    take(transcript, {"text": "a", "thinking": True}, {"text": "b"}, {"text": "c", "thinking": True}, {"restart": True})
    assert take(transcript, {"text": "d"}) == [Delta(text="d")]
    assert (transcript.thinking.text, transcript.answer.text) == ("abc", "d")


def test_the_command_shows_thinking_on_stderr(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
) -> None:
    serving.tokens = THOUGHT
    plain = ask(serving, small, "?")
    assert plain.stdout == "42\n" and len(plain.stderr.splitlines()) == 1
    shown = ask(serving, small, "?", TOFC_DEVICE_SHOW_THINKING="1")
    assert shown.stdout == "42\n" and shown.stderr.startswith("a 4, a 2\n\npicture ")  # sent again, or not
    found = json.loads(ask(serving, small, "?", "--json", "--show-thinking").stdout)
    assert (found["answer"], found["thinking"]) == ("42", "a 4, a 2")
    assert "thinking" not in json.loads(ask(serving, small, "?", "--json").stdout)
    serving.tokens = LATE
    late = ask(serving, small, "?")
    assert late.stdout == "a 4, a 2\n42\n"
    assert late.stderr.startswith("the text so far was thinking; the answer")


def test_thinking_is_dimmed_on_a_terminal(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serving.tokens = THOUGHT
    said: list[str] = []
    monkeypatch.setattr("device_client.ask.note_dim", said.append)
    ask(serving, small, "?", "--show-thinking")
    assert said == ["a 4,", " a 2\n"]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((Terminal(), "\x1b[2ma 4\\x1b[0m\x1b[0m"), (io.StringIO(), "a 4\\x1b[0m")):
        monkeypatch.setattr(sys, "stderr", stream)
        note_dim("a 4\x1b[0m")
        assert stream.getvalue() == expected


def test_a_cut_answer_says_what_to_do(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
) -> None:
    serving.tokens, serving.done = [{"text": "a 4", "thinking": True}], CUT | {"usage": pb.Usage(new_tokens=9)}
    result = ask(serving, small, "?")
    assert result.exit_code == 0 and result.stdout == "\n"
    assert "no answer: the model was still thinking after 9 tokens; raise --max-tokens" in result.stderr
    assert "answer cut" not in result.stderr
    found = json.loads(ask(serving, small, "?", "--json").stdout)
    assert (found["answer"], found["unanswered"], found["finish_reason"]) == ("", True, "length")
    serving.done = {"unanswered": True, "finish_reason": pb.FINISH_REASON_STOP}
    assert "no answer: the model stopped while it was thinking" in ask(serving, small, "?").stderr


def test_a_batch_has_thinking_only_when_asked(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
    tmp_path: Path,
) -> None:
    serving.tokens = THOUGHT
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "small.png", "question": "?"}) + "\n")
    for flags, wanted in (([], None), (["--show-thinking"], "a 4, a 2")):
        out = tmp_path / f"{len(flags)}.jsonl"
        assert ask(serving, "--batch", tmp_path / "q.jsonl", "--out", out, *flags).exit_code == 0
        found = json.loads(out.read_text())
        assert found["answer"] == "42" and found.get("thinking") == wanted


def test_sampling_is_unset_unless_given(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
) -> None:
    ask(serving, small, "?")
    ask(serving, small, "?", "--temperature", 0, "--top-p", 0.5, "--top-k", 0, "--seed", 7)
    ask(serving, small, "?", TOFC_DEVICE_TOP_K="20", TOFC_DEVICE_TOP_P="0.25", TOFC_DEVICE_SEED="8")
    asks = serving.received("ask")
    given, variables = (one.sampling for one in asks[1:])
    assert not asks[0].HasField("sampling")
    assert all(given.HasField(name) for name in ("temperature", "top_p", "top_k"))
    assert (given.temperature, given.top_p, given.top_k, given.seed) == (0, 0.5, 0, 7)
    assert (variables.top_p, variables.top_k, variables.seed) == (0.25, 20, 8)


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_k": -1}, {"top_k": 2**32}, {"seed": -1}, {"seed": 2**64}])
def test_wrong_sampling(wrong: dict[str, Any], small: Path) -> None:
    with pytest.raises(UsageError, match=r"^--[a-z-]+ must be .*, got "):
        Sampling(**wrong)
    ((name, value),) = wrong.items()
    result = command("ask", small, "?", f"--{name.replace('_', '-')}={value}")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
