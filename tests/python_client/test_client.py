"""`Client` against a real server: questions, streams, several pictures, conversations, refusals."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server import credentials
from edge_server.credentials import Credentials
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from tests.e2e.conftest import MODEL, PICTURES, ServerThread
from tests.python_client.conftest import DOG, EXAMPLE, SIGN
from tofc import (
    CancelledError,
    CheckpointError,
    Client,
    DeadlineError,
    LimitError,
    MismatchError,
    SecurityError,
    TlsError,
    TokenError,
    UnavailableError,
    UsageError,
)
from tofc.model.open_image import open_image

LONG = {"temperature": 5.0, "seed": 1, "max_tokens": 500}  # an answer of many tokens, whatever the question


def unseen() -> NDArray[np.uint8]:
    """The example as no server has seen it."""
    pixels = np.asarray(open_image(EXAMPLE)).copy()
    pixels[0, 0] = np.frombuffer(os.urandom(3), np.uint8)
    return pixels


def test_an_answer_says_what_it_cost(edge: Client) -> None:
    picture = edge.picture(unseen())
    first, second = picture.ask(SIGN), picture.ask(DOG)
    assert (first.text, second.text) == ("42", "yes")
    assert (first.question, first.finish_reason, first.thinking) == (SIGN, "stop", None)
    assert first.usage.bytes_picture > 0
    assert second.usage.bytes_picture == 0  # it was sent once
    assert first.usage.prompt_tokens > first.usage.visual_tokens > 0
    assert (first.usage.new_tokens > 0, first.usage.thinking_tokens) == (True, 0)
    assert first.usage.bytes_up is None or first.usage.bytes_up > first.usage.bytes_picture
    assert first.timings["total"] >= first.timings["first_token"] > 0
    assert first.timings["tower"] > 0
    with pytest.raises(FrozenInstanceError):
        first.text = "43"  # type: ignore[misc]


def test_a_picture_that_is_opened_twice_is_sent_once(edge: Client) -> None:
    pixels = unseen()
    assert edge.picture(pixels).ask(SIGN).usage.bytes_picture > 0
    assert edge.picture(pixels.copy()).ask(SIGN).usage.bytes_picture == 0


def test_progress_of_samples_is_told_before_the_answer(edge: Client, example: Path) -> None:
    stream = edge.picture(example).ask(SIGN, pacore=4, stream=True)
    pieces = [*stream]
    told = [piece.progress for piece in pieces if piece.progress]
    assert [str(one) for one in told] == [f"{ended} of 4 samples" for ended in range(5)]
    assert [piece.kind for piece in pieces[:5]] == ["progress"] * 5 and pieces[4].text == ""
    assert "".join(piece.text for piece in pieces[5:]) == stream.result().text
    assert {piece.kind for piece in pieces[5:]} == {"answer"}


def test_an_answer_comes_in_pieces(edge: Client, example: Path) -> None:
    stream = edge.picture(example).ask("what is in the picture?", stream=True, **LONG)
    pieces = [*stream]
    answer = stream.result()
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == answer.text
    assert {piece.kind for piece in pieces} == {"answer"}
    assert not any(piece.restart for piece in pieces)
    assert stream.result() is answer
    assert [*stream] == []


def test_a_stream_may_be_read_to_its_end_at_any_point(edge: Client, example: Path) -> None:
    stream = edge.picture(example).ask(DOG, stream=True)
    assert stream.result().text == "yes"
    stream = edge.picture(example).ask("what is this?", stream=True, **LONG)
    first = next(stream)
    assert stream.result().text.startswith(first.text)


def test_a_stream_that_is_closed_has_no_result(edge: Client, example: Path) -> None:
    picture = edge.picture(example)
    with picture.ask("what is this?", stream=True, **LONG) as stream:
        next(stream)
    stream.close()
    assert [*stream] == []
    with pytest.raises(CancelledError, match="given up"):
        stream.result()
    assert picture.ask(DOG).text == "yes"


def test_sampling_is_by_keyword(edge: Client, example: Path) -> None:
    picture = edge.picture(example)
    one, same = (picture.ask("what is this?", **LONG).text for _ in range(2))
    other = picture.ask("what is this?", **{**LONG, "seed": 2}).text
    assert one == same != other
    short = picture.ask("what is this?", **{**LONG, "max_tokens": 3})
    assert (short.usage.new_tokens, short.finish_reason) == (3, "length")
    assert picture.ask(SIGN, top_p=0.5, top_k=1, temperature=1.0).text == "42"
    assert picture.ask(SIGN, thinking=True).thinking == ""  # nano does not think


def test_several_pictures_in_one_question(edge: Client, example: Path) -> None:
    pictures = [edge.picture(example), edge.picture(PICTURES / "picture-00.jpg")]
    both = edge.ask(pictures, DOG)
    assert both.usage.visual_tokens > edge.ask(pictures[:1], DOG).usage.visual_tokens
    assert edge.ask(iter(pictures), DOG, stream=True).result().text == both.text


def test_a_conversation_keeps_its_turns(edge: Client, example: Path) -> None:
    picture = edge.picture(example)
    chat = picture.chat()
    first, second = chat.ask(SIGN), chat.ask(DOG, stream=True).result()
    assert chat.turns == ((SIGN, first.text), (DOG, second.text))
    assert second.usage.prompt_tokens > picture.ask(DOG).usage.prompt_tokens
    with pytest.raises(UsageError):
        chat.ask(" ")
    chat.ask("what is this?", stream=True).close()
    assert len(chat.turns) == 2  # a question without an answer is not a turn
    assert edge.chat([picture]).turns == ()


def test_a_conversation_that_becomes_too_long_forgets_its_older_half(example: Path) -> None:
    server = ServerThread(limits=SessionLimits(question_bytes=120))
    try:
        with Client(server.address) as edge:
            chat = edge.picture(example).chat()
            asked = [f"{number} {DOG * 2}" for number in range(6)]
            for question in asked:
                assert chat.ask(question).text
            kept = [question for question, _ in chat.turns]
            assert 0 < len(kept) < len(asked)
            assert kept == asked[-len(kept) :]
            with pytest.raises(LimitError, match="bytes of question"):
                chat.ask(DOG * 9)
            assert [question for question, _ in chat.turns] == kept  # as they were
    finally:
        server.stop()


def test_what_cannot_be_asked_is_refused(edge: Client, server: ServerThread, example: Path) -> None:
    picture = edge.picture(example)
    for options, said in (
        ({"temperature": 11}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"timeout_s": 0}, "timeout_s must be more than 0 seconds"),
        ({"max_tokens": -1}, "max_tokens"),
    ):
        given: dict[str, Any] = options
        with pytest.raises(UsageError, match=said):
            picture.ask(DOG, **given)
    for options, said in (
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, got 1.5"),
        ({"max_tokens": None}, "max_tokens must be a whole number, got None"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"thinking": "yes"}, "thinking must be True or False, got 'yes'"),
    ):
        given = options
        with pytest.raises(TypeError, match=said):
            picture.ask(DOG, **given)
    with pytest.raises(TypeError, match="question must be a str, got 5"):
        picture.ask(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="timeout_s must be a number, got '3'"):
        edge.connect(timeout_s="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option 'temprature'; it has max_tokens, temperature"):
        picture.ask(DOG, temprature=1)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="the question is empty"):
        picture.ask("")
    with pytest.raises(UsageError, match="at least one picture"):
        edge.ask([], DOG)
    with pytest.raises(UsageError, match="str is not an opened picture"):
        edge.ask(["street.jpg"], DOG)  # type: ignore[list-item]
    with Client(server.address) as other, pytest.raises(UsageError, match="opened by another client"):
        other.ask([picture], DOG)
    with pytest.raises(LimitError, match="new tokens"):
        picture.ask(DOG, max_tokens=100_000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "nobody:0"}, "port 0"),
        ({"address": "a:b:c"}, "the address must be HOST:PORT"),
        ({"mode": "video"}, "mode must be one of features, image, auto, got video"),
        (
            {"mode": "image", "preset": "low"},
            "preset low belongs to mode features or auto; leave out preset or mode image",
        ),
        ({"quality": 50}, "quality 50 belongs to mode image or auto; add that, or leave quality out"),
        ({"mode": "image", "quality": 0}, "quality must be 1"),
        ({"preset": "low", "budget_bytes": 60}, "exclude each other"),
        ({"dtype": "float8"}, "float8"),
        ({"timeout_s": -1}, "timeout_s must be more than 0 seconds, or None for no limit, got -1"),
        ({"wait_s": -1}, "wait_s must be 0 or more seconds, got -1"),
        ({"token": "a b"}, "visible ASCII"),
        ({"token": "a" * 16, "token_file": "token"}, "token and token_file exclude each other"),
        ({"token_file": "missing"}, "missing does not exist"),
        ({"address": ":local:", "token": "a" * 16}, ":local: needs no token"),
        ({"address": ":local:", "tls": True}, ":local: needs no token"),
    ],
    ids=str,
)
def test_options_that_are_not_allowed_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Client(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": 50061}, "address must be a str or a list of them, got 50061"),
        ({"features": "12"}, "features must be a whole number, got '12'"),
        ({"budget_bytes": 1.5}, "budget_bytes must be a whole number, got 1.5"),
        ({"timeout_s": "3"}, "timeout_s must be a number, got '3'"),
        ({"tls": "no"}, "tls must be True or False, got 'no'"),
        ({"model": 5}, "model must be a path .*, got 5"),
        ({"token": b"0123456789abcdef"}, "token must be a str, got bytes$"),  # it must not get into a log
    ],
    ids=str,
)
def test_options_of_another_type_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Client(**options)


def test_a_model_that_is_not_there_is_named(tmp_path: Path, example: Path) -> None:
    with Client(model=tmp_path / "none") as edge, pytest.raises(CheckpointError, match="none"):
        edge.picture(example)
    with Client(preset="finest") as edge, pytest.raises(UsageError, match="finest is not known"):
        edge.picture(example)


def test_nobody_answers(free_port: int, example: Path) -> None:
    with Client(f"127.0.0.1:{free_port}") as edge:
        with pytest.raises(UnavailableError, match=str(free_port)):
            edge.picture(example).ask(DOG)
        with pytest.raises(UnavailableError):
            edge.connect()
        with pytest.raises(UnavailableError):
            edge.connect(timeout_s=5)


def test_connecting_ahead(edge: Client, example: Path) -> None:
    edge.connect()
    assert edge.picture(example).ask(SIGN).timings["connect"] > 0


def test_time_runs_out(server: ServerThread, example: Path) -> None:
    with Client(server.address, timeout_s=1e-6) as edge:
        picture = edge.picture(example)
        with pytest.raises(DeadlineError):
            picture.ask(DOG)
        assert picture.ask(DOG, timeout_s=None).text == "yes"


def test_packets_are_as_fine_as_asked(server: ServerThread) -> None:
    sent, pixels = {}, unseen()
    for preset in ("low", "max"):
        with Client(server.address, preset=preset, dtype="float32", threads=1, model=str(MODEL)) as edge:
            sent[preset] = edge.picture(pixels).ask(SIGN).usage.bytes_picture
    with Client(server.address, budget_bytes=60) as edge:
        assert 0 < edge.picture(pixels).ask(SIGN).usage.bytes_picture <= 60
    assert sent["low"] < sent["max"]


def test_image_files(server: ServerThread, example: Path) -> None:
    options: dict[str, Any] = {"mode": "image", "codec": "webp", "quality": 80, "scale": 0.9}
    with Client(server.address, **options) as edge, pytest.raises(MismatchError, match="takes no images"):
        edge.picture(example).ask(SIGN)
    taking = ServerThread(limits=SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS))
    try:
        with Client(taking.address, **options) as edge:
            answer = edge.picture(example).ask(SIGN)
    finally:
        taking.stop()
    assert (answer.text, answer.usage.bytes_picture > 500) == ("42", True)


def test_tls_and_token(tmp_path: Path, example: Path) -> None:
    credentials.write(tmp_path, ["localhost"])
    files = Credentials.below(tmp_path)
    server = ServerThread(tls_cert=files.certificate, tls_key=files.key, token_file=files.token)
    address = f"localhost:{server.running.port}"
    ca, token_file = tmp_path / "client" / "ca.pem", tmp_path / "client" / "token"
    token = token_file.read_text().split()[0]
    try:
        for options in ({"token_file": str(token_file)}, {"token": token}):
            with Client(address, tls_ca=ca, **options) as edge:
                assert edge.picture(example).ask(DOG).text == "yes"
        with Client(address, tls_ca=str(ca), token="wrong" * 5) as edge, pytest.raises(TokenError):
            edge.picture(example).ask(DOG)
        with Client(address, tls=True, token=token) as edge, pytest.raises(TlsError):
            edge.picture(example).ask(DOG)
        assert token not in repr(edge)
    finally:
        server.stop()
    with Client("192.0.2.1:50061") as edge, pytest.raises(SecurityError, match="needs TLS and a token"):
        edge.picture(example).ask(DOG)
