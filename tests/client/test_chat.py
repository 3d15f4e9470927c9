"""`device-client chat`: questions from stdin, each with the turns before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from device_client import cli
from device_client.fake import FakeEncoder
from tests.client.conftest import FakeServer
from tests.client.test_cli import command
from tofc.errors import InvalidRequestError, LimitError
from tofc.model.checkpoint import ModelIdentity
from tofc.model.shipped import NANO


def chat(server: FakeServer, typed: str | bytes, *arguments: object, **environment: str) -> Result:
    arguments = ["chat", *map(str, arguments), "--server", f"127.0.0.1:{server.port}"]
    return CliRunner().invoke(cli.app, arguments, input=typed, env=environment)


def test_each_question_has_the_turns_before_it(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
) -> None:
    result = chat(serving, "one\n\n  two \nthree", small, small, "--features", 9, "--seed", 5)
    assert result.exit_code == 0 and result.stdout == "yes to one\nyes to two\nyes to three\n"
    first, second, third = serving.received("ask")
    assert serving.prompts[2] == ["one", "yes to one", "two", "yes to two", "three"]
    assert [one.previous_request for one in (first, second, third)] == [0, 1, 2] and not third.history
    assert first.sampling.seed == 5
    assert all(len(one.refs) == 2 for one in (first, second, third))
    assert serving.kinds().count("view") == 1  # both are one picture, and sent once
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and "picture 100 B" in lines[0] and "the server has it" in lines[2]
    assert encoders[0].setting == "9 features, 9 of a crop, quality 1"
    assert "> " not in result.stderr  # no terminal


def test_thinking_and_questions_without_an_answer_are_not_turns(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
) -> None:
    serving.tokens = [{"text": "hm", "thinking": True}, {"text": "42"}]
    result = chat(serving, "one\ntwo\n", small, "--show-thinking")
    assert result.stdout == "42\n42\n" and result.stderr.count("hm\n") == 2
    assert serving.prompts[1] == ["one", "42", "two"]
    serving.tokens, serving.done = serving.tokens[:1], {"unanswered": True}
    result = chat(serving, "three\nfour\n", small)
    assert result.exit_code == 0 and result.stderr.count("no answer: the model stopped while it was thinking") == 2
    assert serving.prompts[3] == ["four"]


def test_a_conversation_that_becomes_too_long_forgets_its_older_half(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
) -> None:
    serving.limits.question_bytes = 45  # four turns of "q", "yes to q" and a question are 40
    result = chat(serving, "a\nb\nc\nd\ne\nf\ng\n", small)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "yes to g"
    assert result.stderr.count("the conversation became too long: the first 3 answers are forgotten") == 1
    assert serving.prompts[4] == ["a", "yes to a", "b", "yes to b", "c", "yes to c", "d", "yes to d", "e"]
    assert serving.prompts[5] == ["d", "yes to d", "e", "yes to e", "f"]
    assert serving.prompts[6] == [*serving.prompts[5], "yes to f", "g"]
    serving.fail = InvalidRequestError("the model reads at most 9", reason="PROMPT_TOO_LONG")
    result = chat(serving, "one\nfail\ntwo\n", small)  # too long by itself
    assert result.exit_code == 5 and "forgotten" not in result.stderr and "at most 9" in result.stderr
    assert result.stdout == "yes to one\n\nyes to two\n", "a line a question, for programs that wait for one"
    assert serving.prompts[-1] == ["one", "yes to one", "two"]


def test_pictures_as_files(serving: FakeServer, small: Path) -> None:
    origin = ModelIdentity.read(NANO)
    serving.model_id, serving.codec_id = origin.model_id, origin.codec_id
    serving.limits.image_bytes = serving.limits.image_pixels = 1_000_000
    result = chat(serving, "one\ntwo\n", small, "--mode", "image", "--codec", "webp")
    assert result.exit_code == 0 and result.stdout == "yes to one\nyes to two\n"
    assert "(as webp, quality 75, 1 view" in result.stderr and serving.kinds().count("image_chunk") == 1


def test_a_terminal_is_prompted(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("device_client.chat._is_terminal", lambda: True)
    result = chat(serving, "one\n", small)
    assert result.stdout == "yes to one\n"
    assert result.stderr.startswith("> picture 100 B") and result.stderr.endswith("\n> \n")


def test_a_person_may_ask_again_after_what_would_end_a_file_of_questions(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_client.chat._is_terminal", lambda: True)
    serving.fail = LimitError("full")
    result = chat(serving, "one\nfail\ntwo\n", small)
    assert result.exit_code == 5 and result.stdout == "yes to one\n\nyes to two\n" and "full" in result.stderr
    assert serving.prompts[-1] == ["one", "yes to one", "two"]


def test_what_ends_a_conversation(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
    tmp_path: Path,
) -> None:
    assert chat(serving, "", small).exit_code == 0 and serving.sessions == 0
    serving.fail = LimitError("too long")
    result = chat(serving, "one\nfail\ntwo\n", small)
    assert result.exit_code == 5 and result.stdout == "yes to one\n" and "too long" in result.stderr
    assert chat(serving, "one\n", tmp_path / "none.png").exit_code == 2
    result = chat(serving, b"caf\xe9\ntwo\n", small)
    assert result.exit_code == 2 and "not UTF-8 text at character 4" in result.stderr
    assert result.stdout == "\nyes to two\n"
    assert command("chat", small, "--timeout", "-1").exit_code == 2


@pytest.mark.parametrize(
    "typed", [b"\xef\xbb\xbfone\r\n two \r\n", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo", b"one\rtwo\r", b"one\n\n\ntwo"]
)
def test_questions_as_other_systems_write_them(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, typed: bytes
) -> None:
    assert chat(serving, typed, small).stdout == "yes to one\nyes to two\n"
    assert [one.question for one in serving.received("ask")] == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_utf_16_is_reported_once(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, encoding: str
) -> None:
    result = chat(serving, "what is this?\nand this?\n".encode(encoding), small)
    assert result.exit_code == 2 and result.stdout == "" and not serving.received("ask")
    assert result.stderr.startswith(f"device-client: stdin is {encoding[:6].upper()} text; save it as UTF-8")
    assert len(result.stderr.splitlines()) == 1


def test_an_empty_answer_is_noted(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    serving.tokens = [{"text": ""}]
    result = chat(serving, "one\ntwo\n", small)
    assert result.exit_code == 0 and result.stdout == "\n\n"
    assert result.stderr.count("the answer is empty: the model stopped after 3 tokens") == 2
    assert serving.prompts[1] == ["two"], "an empty answer is not a turn"


def test_json_holds_valid_text_only(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    """Bytes that are not UTF-8 are lone surrogates in Python, which strict JSON parsers refuse."""
    typed = "caf\xe9 ü\n".encode("latin-1") + "ü\udce9\n".encode(errors="surrogatepass")
    result = chat(serving, typed, small, "--json")
    assert result.exit_code == 2
    found = [json.loads(line)["question"] for line in result.stdout.splitlines()]
    assert found == ["caf\ufffd \ufffd", "ü\ufffd\ufffd\ufffd"]


def test_json_is_one_line_per_question(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    serving.fail = InvalidRequestError("too much", reason="QUESTION_TOO_LONG")
    serving.reply_start = "yes\n\nor\u2028\x1bno"
    result = chat(serving, "one\nfail\ntwo\n", small, "--json")
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert first["answer"] == f"{serving.reply_start} to one" and first["bytes_picture"] == 100
    assert third["question"] == "two"
    assert second == {"question": "fail", "error": "too much"} and "too much" in result.stderr
    assert (result.exit_code, len(result.stderr.splitlines())) == (5, 1)
    assert serving.prompts[-1] == ["one", f"{serving.reply_start} to one", "two"]


def test_ctrl_c_ends_quietly(
    serving: FakeServer,
    encoders: list[FakeEncoder],
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("device_client.ask.show", interrupt)
    result = chat(serving, "one\ntwo\n", small)
    assert result.exit_code == 130 and result.stderr == "device-client: stopped\n"
