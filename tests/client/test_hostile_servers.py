"""Whatever a server sends, a device ends with a sentence and an exit code, and takes a bounded amount of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from device_client.exit_codes import NO_SERVER, REFUSED
from device_client.fake import FakeEncoder
from device_client.reply_limit import MAX_ROLLOUT_BYTES, MAX_TEXT_BYTES, ROLLOUT_BYTES
from device_client.retry_policy import RetryPolicy
from edge_server import cli as server_cli
from tests.client.hostile import Hostile, Reply, Script, Stage, hostile_server
from tests.client.test_cli import command
from tofc.error_text import LONGEST
from tofc.rpc.channel import MAX_DOWN_BYTES
from tofc.v1 import tofc_pb2 as pb

ESCAPES = "\x1b]52;c;ZXZpbA==\x07\x9b2J\x1b[31mred\r\n\u2028"
WRITTEN = "\\x1b]52;c;ZXZpbA==\\x07\\x9b2J\\x1b[31mred\\x0d\\n"
MOST = 2**32 - 1
SOON = ("--timeout", "0.2")  # for a server that sends nothing useful


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, encoders: list[FakeEncoder]) -> Iterator[Hostile]:
    monkeypatch.setattr(RetryPolicy, "pause_s", lambda *_: 0.0)
    with hostile_server() as server:
        yield server


def ask(server: Hostile, picture: Path, *words: object, question: str = "what?") -> Result:
    result = command("ask", picture, question, "--server", f"127.0.0.1:{server.port}", "--timeout", 100, *words)
    assert "\x1b" not in result.output and "\x07" not in result.output and "\x9b" not in result.output
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 4 * LONGEST, "sentences are bounded"
    return result


def response(**kind: Any) -> pb.SessionResponse:
    return pb.SessionResponse(**kind)


def token(**fields: Any) -> pb.SessionResponse:
    return response(token=pb.Token(**{"request": 1, **fields}))


def rollout(**fields: Any) -> pb.SessionResponse:
    return response(rollout=pb.Rollout(**{"request": 1, "round": 1, **fields}))


def done(**fields: Any) -> pb.SessionResponse:
    return response(done=pb.Done(**{"request": 1, "finish_reason": pb.FINISH_REASON_STOP, **fields}))


def error(message: str = "no", status: int = 3, reason: str = "", request: int = 1) -> pb.SessionResponse:
    return response(error=pb.Error(request=request, status=status, reason=reason, message=message))


def replies(*messages: Reply, times: int = 1, **welcome: Any) -> Script:
    """Send Welcome and, after the question, `messages` this many `times`."""

    async def script(stage: Stage) -> AsyncIterator[Reply]:
        yield await stage.welcome(**welcome)
        await stage.until("asks")
        for _ in range(times):
            for message in messages:
                yield message

    return script


async def silent(stage: Stage) -> AsyncIterator[Reply]:
    await asyncio.Event().wait()
    yield b""


async def deaf(stage: Stage) -> AsyncIterator[Reply]:
    """Send Welcome, and read nothing from then on, though the device sends much."""
    stage.deaf = True
    yield await stage.welcome()
    await asyncio.Event().wait()


def at_once(message: Reply) -> Script:
    async def script(stage: Stage) -> AsyncIterator[Reply]:
        yield message

    return script


def aborted(details: str, **call: Any) -> Script:
    async def script(stage: Stage) -> AsyncIterator[Reply]:
        yield await stage.welcome()
        await stage.context.abort(grpc.StatusCode.PERMISSION_DENIED, details, **call)

    return script


def each_time(*messages: pb.SessionResponse) -> Script:
    """Send `messages` after every question, with its number."""

    async def script(stage: Stage) -> AsyncIterator[Reply]:
        yield await stage.welcome()
        for count in range(1, 2 * RetryPolicy().attempts):
            number = (await stage.until("asks", count)).request
            for message in messages:
                kind = message.WhichOneof("response")
                assert kind is not None
                copy = pb.SessionResponse()
                copy.CopyFrom(message)
                if kind in ("error", "token", "done", "need_picture"):
                    getattr(copy, kind).request = number
                yield copy

    return script


async def requesting_for_ever(stage: Stage) -> AsyncIterator[Reply]:
    """Take the picture, and request it again."""
    yield await stage.welcome()
    await stage.until("asks")
    for count in range(1, 2 * RetryPolicy().attempts):
        await stage.until("views", count)
        yield response(view_ack=pb.ViewAck(ref=1, indexes=[0]))
        yield response(need_picture=pb.NeedPicture(request=1, ref=1))
        yield response(picture_state=pb.PictureState(ref=1))


FOR_EVER = 1_000_000
HUGE = "x" * 800_000
SAMPLES = pb.Limits(packet_bytes=1000, new_tokens=50, samples=2)
VOTE = ("--vote", 2, "--rollouts")
NO_CODE = 0  # the exit code: every question was answered


@dataclass(frozen=True, kw_only=True)
class Case:
    script: Script
    code: int
    stderr: str  # what it contains
    options: tuple[object, ...] = ()
    question: str = "what?"
    out: str = ""  # stdout
    max_sent: int = 1000  # messages that the server can send, including those in buffers


UNAVAILABLE, NOT_FOUND, EXHAUSTED = 14, 5, 8
GARBAGE = b"\xff" * 100
CASES = {
    "escapes in a question's error": Case(script=replies(error(ESCAPES)), code=REFUSED, stderr=WRITTEN),
    "escapes in the session's error": Case(script=replies(error(ESCAPES, request=0)), code=REFUSED, stderr=WRITTEN),
    "escapes in the status": Case(script=aborted(ESCAPES), code=NO_SERVER, stderr="\\x1b]52"),
    "escapes in a reason": Case(script=replies(error("no", reason=ESCAPES)), code=REFUSED, stderr="device-client: no"),
    "escapes in a name": Case(script=replies(model_id=ESCAPES), code=REFUSED, stderr=WRITTEN),
    "escapes in an answer": Case(
        script=replies(token(text=ESCAPES), done()), code=NO_CODE, stderr="total", out=WRITTEN.replace("\\n", "\n")
    ),
    "escapes in thinking": Case(
        script=replies(token(text=ESCAPES, thinking=True), token(text="a"), done()),
        code=NO_CODE,
        stderr="\\x1b]52",
        options=("--show-thinking",),
    ),
    "a long sentence": Case(script=replies(error(HUGE)), code=REFUSED, stderr="… (800000 characters)"),
    "a long sentence of the session": Case(
        script=replies(error(HUGE, request=0)), code=REFUSED, stderr="… (800000 characters)"
    ),
    "a long refusal": Case(script=at_once(error(HUGE, request=0)), code=REFUSED, stderr="… (800000 characters)"),
    "a long name": Case(script=replies(codec_id=HUGE), code=REFUSED, stderr="… (800000 characters)"),
    "a long status": Case(script=aborted(HUGE), code=REFUSED, stderr=""),
    "a long reason": Case(script=replies(error("no", reason="A" * 800_000)), code=REFUSED, stderr="device-client: no"),
    "an answer without end": Case(
        script=replies(token(text="a"), times=FOR_EVER), code=NO_SERVER, stderr="did not end its answer after 50 tokens"
    ),
    "an answer beyond --max-tokens": Case(
        script=replies(token(text="a"), times=FOR_EVER),
        code=NO_SERVER,
        stderr="did not end its answer after 3 tokens",
        options=("--max-tokens", 3),
    ),
    "empty tokens without end": Case(
        script=replies(token(), times=FOR_EVER), code=NO_SERVER, stderr="did not end its answer after 50 tokens"
    ),
    "thinking without end": Case(
        script=replies(token(text="a", thinking=True), times=FOR_EVER),
        code=NO_SERVER,
        stderr="did not end its answer after 50 tokens",
    ),
    "a text without end": Case(
        script=replies(token(text="a\n" * 5000), times=FOR_EVER, limits=pb.Limits(packet_bytes=1000)),
        code=NO_SERVER,
        stderr=f"did not end its answer after {MAX_TEXT_BYTES} bytes of text",
        options=("--json",),
    ),
    "a text without end, within absurd limits": Case(
        script=replies(token(text="a" * 10_000), times=FOR_EVER, limits=pb.Limits(packet_bytes=1000, new_tokens=MOST)),
        code=NO_SERVER,
        stderr=f"did not end its answer after {MAX_TEXT_BYTES} bytes of text",
        options=("--json",),
    ),
    "an answer that restarts again and again": Case(
        script=replies(token(restart=True), token(text="a"), times=FOR_EVER, limits=pb.Limits(packet_bytes=1000)),
        code=NO_SERVER,
        stderr="restarted its answer more than 100 times",
        options=("--json",),
    ),
    "empty samples without end": Case(
        script=replies(rollout(), times=FOR_EVER, limits=SAMPLES),
        code=NO_SERVER,
        stderr="sent more or longer samples than it may",
        options=VOTE,
        max_sent=2 * MAX_ROLLOUT_BYTES // ROLLOUT_BYTES + 1000,
    ),
    "a sample beyond those asked for": Case(
        script=replies(rollout(sample=2), limits=SAMPLES),
        code=NO_SERVER,
        stderr="sent sample 2 of round 1, of 2 in all",
        options=VOTE,
    ),
    "a round beyond those asked for": Case(
        script=replies(rollout(round=MOST), limits=SAMPLES),
        code=NO_SERVER,
        stderr=f"sent sample 0 of round {MOST}, of 2 in all",
        options=VOTE,
    ),
    "samples that were not requested": Case(
        script=replies(rollout(), limits=SAMPLES),
        code=NO_SERVER,
        stderr="sent samples that were not requested",
        options=VOTE[:2],
    ),
    "samples of a plain answer": Case(
        script=replies(rollout(), limits=SAMPLES), code=NO_SERVER, stderr="sent samples that were not requested"
    ),
    "the largest limits": Case(
        script=replies(
            token(text="a"),
            done(),
            limits=pb.Limits(**{field.name: MOST for field in pb.Limits.DESCRIPTOR.fields}),
            picture_key=bytes(64),
        ),
        code=NO_CODE,
        stderr="total",
        out="a\n",
    ),
    "no limits": Case(script=replies(limits=pb.Limits()), code=REFUSED, stderr="this server allows 0"),
    "a huge key": Case(
        script=replies(picture_key=bytes(800_000)), code=NO_SERVER, stderr="picture key has 800000 bytes"
    ),
    "no key": Case(script=replies(picture_key=b""), code=NO_SERVER, stderr="picture key has 0 bytes"),
    "acknowledgements of nothing": Case(
        script=replies(
            response(view_ack=pb.ViewAck(ref=7, indexes=[0, 0, MOST])),
            response(view_ack=pb.ViewAck(ref=1, indexes=range(200_000))),
            response(image_ack=pb.ImageAck(ref=MOST, offset=MOST)),
            token(text="a"),
            done(),
        ),
        code=NO_CODE,
        stderr="total",
        out="a\n",
    ),
    "states of nothing": Case(
        script=replies(
            response(picture_state=pb.PictureState(ref=MOST, complete=True)),
            response(picture_state=pb.PictureState(ref=1, views=[*range(200_000), 0, 0])),
            *[response(picture_state=pb.PictureState(ref=1, complete=bool(count % 2))) for count in range(10)],
            token(text="a"),
            done(),
        ),
        code=NO_CODE,
        stderr="total",
        out="a\n",
    ),
    "a picture that is requested for ever": Case(
        script=requesting_for_ever,
        code=NO_SERVER,
        stderr="requested the pictures of one question again and again",
        max_sent=30,
    ),
    "pictures that are requested at once": Case(
        script=replies(response(need_picture=pb.NeedPicture(request=1, ref=1)), times=FOR_EVER),
        code=NO_SERVER,
        stderr="requested the pictures of one question again and again",
    ),
    "a picture that the question did not name": Case(
        script=replies(response(need_picture=pb.NeedPicture(request=1, ref=9))),
        code=NO_SERVER,
        stderr="requested picture 9, which the question did not name",
    ),
    "done before anything": Case(script=replies(done()), code=NO_CODE, stderr="the answer is empty", out="\n"),
    "done twice, and more": Case(
        script=replies(token(text="a"), done(), done(), token(text="b"), error(), done()),
        code=NO_CODE,
        stderr="total",
        out="a\n",
    ),
    "answers to questions that were not asked": Case(
        script=replies(*[one(request=9) for one in (token, done, error)], token(text="a"), done()),
        code=NO_CODE,
        stderr="total",
        out="a\n",
    ),
    "an end for an unknown reason": Case(
        script=replies(token(text="a"), done(finish_reason=99)),  # type: ignore[arg-type]
        code=NO_CODE,
        stderr="total",
        out="a\n",
    ),
    "an error with status OK": Case(script=replies(error(status=0)), code=NO_SERVER, stderr="no"),
    "an unknown error": Case(script=replies(error("", status=-7)), code=NO_SERVER, stderr="this version does not know"),
    "text that is not UTF-8": Case(
        script=replies(token(text="abc").SerializeToString().replace(b"abc", b"\xff\xfe\xfd")),
        code=NO_SERVER,
        stderr="cannot be read",
    ),
    "bytes that are not a message": Case(script=replies(GARBAGE), code=NO_SERVER, stderr="cannot be read"),
    "bytes instead of Welcome": Case(script=at_once(GARBAGE), code=NO_SERVER, stderr="cannot be read"),
    "another first message": Case(script=at_once(token()), code=NO_SERVER, stderr="expected Welcome, got 'token'"),
    "Welcome twice": Case(script=replies(response(welcome=pb.Welcome())), code=NO_SERVER, stderr="Welcome twice"),
    "a message that is too large": Case(
        script=replies(token(text="x" * MAX_DOWN_BYTES)), code=NO_SERVER, stderr="sent a message that is too large"
    ),
    "a large message": Case(
        script=replies(token(text="x" * 999_000), done()), code=NO_CODE, stderr="", out="x" * 999_000
    ),
    "unknown messages, for ever": Case(
        script=replies(b"\xfa\x01\x00", times=FOR_EVER),
        code=NO_SERVER,
        stderr="no answer within 0.2 s",
        options=SOON,
        max_sent=FOR_EVER,
    ),
    "silence from the first moment": Case(script=silent, code=NO_SERVER, stderr="no answer within 0.2 s", options=SOON),
    "silence after Welcome": Case(script=replies(), code=NO_SERVER, stderr="no answer within 0.2 s", options=SOON),
    "no reading": Case(
        script=deaf, code=NO_SERVER, stderr="no answer within 0.2 s", options=SOON, question="x" * 200_000
    ),
    "unavailable for ever": Case(script=each_time(error("later", UNAVAILABLE)), code=NO_SERVER, stderr="later"),
    "used up for ever": Case(
        script=each_time(error("another", EXHAUSTED, "SESSION_USED_UP")), code=REFUSED, stderr="another"
    ),
    "views that are missing for ever": Case(
        script=each_time(error("views", 4, "VIEWS_MISSING")),
        code=NO_SERVER,
        stderr="views",
        max_sent=2 * RetryPolicy().attempts,
    ),
    "unavailable for ever, though it takes some": Case(
        script=each_time(response(view_ack=pb.ViewAck(ref=1, indexes=[0])), error("later", UNAVAILABLE)),
        code=NO_SERVER,
        stderr="later",
        max_sent=3 * RetryPolicy().attempts,
    ),
    "a conversation that the question did not continue": Case(
        script=each_time(error("gone", NOT_FOUND, "CONVERSATION_GONE")), code=REFUSED, stderr="gone"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_sentence_and_an_exit_code(hostile: Hostile, case: Case, small: Path) -> None:
    hostile.script = case.script
    result = ask(hostile, small, *case.options, question=case.question)
    assert (result.exit_code, case.stderr in result.stderr) == (case.code, True), (result.stderr, result.exception)
    assert case.out in result.stdout
    assert hostile.sent <= case.max_sent


def test_the_largest_figures(hostile: Hostile, small: Path) -> None:
    names = [field.name for field in pb.Timing.DESCRIPTOR.fields]
    timing = pb.Timing(**dict.fromkeys(names, MOST))
    usage = pb.Usage(**{field.name: MOST for field in pb.Usage.DESCRIPTOR.fields})
    hostile.script = replies(token(text="a"), done(timing=timing, usage=usage))
    shown = ask(hostile, small)
    assert (shown.exit_code, shown.stdout) == (0, "a\n")
    assert "server decode 4294967, prefill 4294967," in shown.stderr
    report = json.loads(ask(hostile, small, "--json").stdout)
    assert [report["timings"][f"server_{name.removesuffix('_us')}"] for name in names] == [round(MOST / 1e3, 2)] * len(
        names
    )
    assert report["usage"]["new_tokens"] == MOST


def test_json_has_the_exact_text(hostile: Hostile, small: Path) -> None:
    hostile.script = replies(token(text=ESCAPES), done())
    assert json.loads(ask(hostile, small, "--json").stdout)["answer"] == ESCAPES


def test_a_file_of_which_the_server_claims_to_have_more_than_all(hostile: Hostile, small: Path) -> None:
    async def script(stage: Stage) -> AsyncIterator[Reply]:
        yield await stage.welcome()
        await stage.until("image_chunks")
        yield response(need_picture=pb.NeedPicture(request=1, ref=1))
        state = pb.PictureState(ref=1)
        state.image.bytes, state.image.crc32 = MOST, MOST
        yield response(picture_state=state)
        yield token(text="a")
        yield done()

    hostile.script = script
    result = ask(hostile, small, "--mode", "image")
    assert (result.exit_code, result.stdout) == (0, "a\n")


def test_a_batch_ends_with_a_line_each(hostile: Hostile, small: Path, tmp_path: Path) -> None:
    """The link that a server abused is given up, and the next line gets another one."""
    lines, out = tmp_path / "lines.jsonl", tmp_path / "out.jsonl"
    lines.write_text(f'{{"image": "{small.name}", "question": "what?"}}\n' * 3, encoding="utf-8")
    hostile.script = each_time(*[token(text=f":warning:[red]{ESCAPES}")] * 103)
    result = command("ask", "--batch", lines, "--out", out, "--server", f"127.0.0.1:{hostile.port}")
    assert result.exit_code == 4 and hostile.sessions >= 3
    errors = [json.loads(line)["error"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(errors) == 3 and all("did not end its answer after 50 tokens" in one for one in errors)
    hostile.script = each_time(error(f":warning:[red]{ESCAPES}"))
    result = command("ask", "--batch", lines, "--out", tmp_path / "again", "--server", f"127.0.0.1:{hostile.port}")
    assert result.exit_code == 4 and f":warning:[red]{WRITTEN}" in result.stderr and "\x1b" not in result.output


INFOS = {
    "escapes": (pb.GetServerInfoResponse(engine=ESCAPES, model_id="m").SerializeToString(), 0, WRITTEN),
    "a long name": (pb.GetServerInfoResponse(model_id=HUGE).SerializeToString(), 0, "… (800000 characters)"),
    "the largest limits": (
        pb.GetServerInfoResponse(
            limits=pb.Limits(**{field.name: MOST for field in pb.Limits.DESCRIPTOR.fields})
        ).SerializeToString(),
        0,
        str(MOST),
    ),
    "bytes that are not a message": (GARBAGE, 1, "cannot be read"),
    "text that is not UTF-8": (b"\x0a\x03\xff\xfe\xfd", 1, "cannot be read"),
    "a message that is too large": (bytes(2 * MAX_DOWN_BYTES), 1, "sent a message that is too large"),
}


@pytest.mark.parametrize("info, code, output", INFOS.values(), ids=INFOS)
def test_server_info(hostile: Hostile, info: bytes, code: int, output: str) -> None:
    hostile.info = info
    result = CliRunner().invoke(server_cli.app, ["info", f"127.0.0.1:{hostile.port}"])
    assert (result.exit_code, output in result.output) == (code, True), (result.output, result.exception)
    assert "\x1b" not in result.output and len(result.output) < 6 * LONGEST


def test_a_server_that_says_nothing_of_itself(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_cli, "CONNECT_TIMEOUT_S", 0.2)
    result = CliRunner().invoke(server_cli.app, ["info", f"127.0.0.1:{hostile.port}"])
    assert result.exit_code == 1 and "did not answer within 0.2 s" in result.output
