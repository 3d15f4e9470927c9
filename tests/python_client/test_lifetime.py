"""How a client ends (closed, garbage-collected, interrupted, or with the interpreter), and its use from threads."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, ServerThread
from tests.python_client.conftest import DOG, EXAMPLE, SIGN
from tofc import CancelledError, Client, Error, UnavailableError, UsageError
from tofc.client import AnswerStream
from tofc.client.loop_thread import THREAD

WAIT_S = 60.0
ENDLESS = {"temperature": 5.0, "seed": 1, "max_tokens": 1000, "timeout_s": None}


def loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def ended(condition: Callable[[], bool]) -> None:
    """Wait for the threads of clients that were there to end."""
    for thread in loops():
        thread.join(WAIT_S)
    assert condition()


def test_after_closing_nothing_can_be_asked(server: ServerThread, example: Path) -> None:
    edge = Client(server.address)
    picture = edge.picture(example)
    assert picture.ask(DOG).text == "yes"
    stream = picture.ask(DOG, stream=True)
    edge.close()
    edge.close()
    uses: list[Callable[[], object]] = [
        lambda: picture.ask(DOG),
        lambda: edge.picture(example),
        lambda: edge.connect(),
        lambda: next(stream),
        lambda: picture.chat().ask(DOG),
        lambda: [*picture.ask(DOG, stream=True)],
    ]
    for use in uses:
        with pytest.raises(UsageError, match="this client was closed; make another one"):
            use()
    stream.close()
    assert loops() == []


def test_a_client_that_was_never_used_has_no_thread() -> None:
    edge = Client("127.0.0.1:1")
    assert loops() == []
    edge.close()


def test_closing_ends_an_answer_that_another_thread_waits_for(server: ServerThread, example: Path) -> None:
    edge = Client(server.address)
    picture = edge.picture(example)
    started = threading.Event()

    def read() -> str:
        try:
            while True:
                for _ in picture.ask("what is this?", stream=True, **ENDLESS):  # type: ignore[call-overload]
                    started.set()
        except Error as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert started.wait(WAIT_S)
        edge.close()
        assert "closed" in reading.result(WAIT_S)
    assert loops() == []


def test_a_stream_is_given_up_from_another_thread(server: ServerThread, example: Path) -> None:
    with Client(server.address) as edge, ThreadPoolExecutor(1) as pool:
        streams: list[AnswerStream] = []
        started = threading.Event()

        def read() -> None:
            picture = edge.picture(example)
            while True:  # an answer may end before it is given up
                streams.append(picture.ask("what is this?", stream=True, **ENDLESS))  # type: ignore[call-overload]
                for _ in streams[-1]:
                    started.set()
                if streams[-1]._stream._given_up:
                    raise CancelledError

        reading = pool.submit(read)
        assert started.wait(WAIT_S)
        while not reading.done():
            streams[-1].close()
        with pytest.raises(CancelledError):
            reading.result(WAIT_S)
        assert edge.picture(example).ask(DOG).text == "yes"


def test_several_threads_ask_at_once(edge: Client, example: Path) -> None:
    picture = edge.picture(example)

    def ask(number: int) -> str:
        mine = picture if number % 2 else edge.picture(example)
        return mine.ask(SIGN if number % 3 else DOG, stream=number % 5 == 0).text if number % 5 else ask(number + 1)

    with ThreadPoolExecutor(6) as pool:
        found = [*pool.map(ask, range(24))]
    assert {*found} == {"42", "yes"}


async def test_it_works_where_an_event_loop_runs(server: ServerThread, example: Path) -> None:
    with Client(server.address) as edge:  # as in a notebook
        assert edge.picture(example).ask(DOG).text == "yes"


def test_a_forgotten_client_ends_by_itself(server: ServerThread, example: Path) -> None:
    edge = Client(server.address)
    stream = edge.picture(example).ask("what is this?", stream=True, **ENDLESS)  # type: ignore[call-overload]
    next(stream)
    gone = weakref.ref(edge)
    del edge
    assert gone() is not None  # the stream needs it
    del stream
    gc.collect()
    ended(lambda: gone() is None and loops() == [])


def test_a_forgotten_stream_is_given_up(example: Path) -> None:
    server = ServerThread(engine_parallel=1, engine_queue=1)  # room for two: a third is refused while the first runs
    try:
        with Client(server.address) as edge:
            picture = edge.picture(example)
            for _ in range(4):
                next(picture.ask("what is this?", stream=True, **ENDLESS))  # type: ignore[call-overload]
                gc.collect()
            assert picture.ask(DOG).text == "yes"
    finally:
        server.stop()


def test_a_server_that_goes_ends_the_question(example: Path) -> None:
    server = ServerThread()
    with Client(server.address) as edge:
        picture = edge.picture(example)
        assert picture.ask(DOG).text == "yes"
        server.stop()
        with pytest.raises(UnavailableError):
            picture.ask(DOG, timeout_s=2)


def python(script: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a program with a client."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S * 4, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_program_may_end_without_closing(server: ServerThread) -> None:
    script = (
        "import sys; from tofc import Client\n"
        "edge = Client(sys.argv[1]); picture = edge.picture(sys.argv[2])\n"
        "print(picture.ask('is there a dog?').text)\n"
        "stream = picture.ask('what is this?', stream=True, temperature=5.0, seed=1, max_tokens=1000)\n"
        "next(stream)"
    )
    assert python(script, server.address, str(EXAMPLE)) == (0, "yes\n", "")


def test_ctrl_c_gives_the_question_up(server: ServerThread) -> None:
    script = (
        "import os, signal, sys, threading; from tofc import Client\n"
        "with Client(sys.argv[1]) as edge:\n"
        "    picture = edge.picture(sys.argv[2])\n"
        "    print(picture.ask('is there a dog?').text)\n"
        "    ask = dict(temperature=5.0, seed=1, max_tokens=1000)\n"
        "    def interrupt(): os.kill(os.getpid(), signal.SIGINT)\n"
        "    try:\n"
        "        for piece in picture.ask('what is this?', stream=True, **ask):\n"
        "            break\n"
        "        threading.Timer(0.01, interrupt).start()\n"
        "        while True: picture.ask('what is this?', **ask)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n"
        "    print(picture.ask('is there a dog?').text)\n"
    )
    assert python(script, server.address, str(EXAMPLE)) == (0, "yes\ninterrupted\nyes\n", "")
