"""A conversation about pictures: a question a line on stdin, each asked with the turns before it.

Promises that pictures are sent once, that what the model thought is no part of a turn, and that a conversation goes
on: after a question that is refused, and when it has become too long for the server or the model, whereupon its older
half is forgotten. Every question is a line of stdout at least, for programs that wait for one: an empty line where it
is refused. Leaves showing answers to `ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

from device_client.ask import stream
from device_client.errors import UseError, exit_code
from device_client.picture import Picture
from device_client.render import truth
from device_client.report import Report
from device_client.session import Answer, Sampling, Session
from device_client.waiting import waiting
from shared.rpc.errors import TofcError
from shared.terminal import note, say, say_json
from shared.text import split, stripped

READER = "tofc-stdin"  # the thread that waits for a line
TOO_LONG = ("QUESTION_TOO_LONG", "PROMPT_TOO_LONG")  # what fewer turns may cure


async def converse(
    session: Session,
    pictures: list[Picture],
    *,
    sampling: Sampling,
    thinking: bool,
    timeout_s: float | None,
    as_json: bool = False,
) -> int:
    """Until the end of stdin; returns the exit code of the last question that had no answer, 0 where all had one.

    Such a question is no turn. With ``as_json`` one object a question instead of streamed text, with a field ``error``
    where it was refused. Raises what every further question would end with too.
    """
    turns: list[tuple[str, str]] = []
    code = 0
    async for question in _questions():
        ask = partial(session.ask, pictures, question, sampling=sampling, thinking=thinking, timeout_s=timeout_s)
        try:
            report = await _answered(ask, turns, session, as_json)
        except (UseError, TofcError) as error:
            of_the_question = isinstance(error, UseError) or error.reason in TOO_LONG
            if not (of_the_question or (turns and _is_terminal())):  # a person may wait and ask again
                raise
            code = exit_code(error)
            if as_json:
                say_json({"question": _text(question), "error": str(error)})
            else:
                say()
            note(f"device-client: {error}")
            continue
        if as_json:
            say_json(report.to_json())
        else:
            note(truth(report, None))
        if report.answer.strip():
            turns.append((question, report.answer))
    return code


async def _answered(
    ask: Callable[..., Answer], turns: list[tuple[str, str]], session: Session, as_json: bool
) -> Report:
    """Show the answer to what ``ask`` asks after ``turns``, of which the older half goes while they are too long.

    They all stay where even the question alone is.
    """
    told = list(turns)
    while True:
        answer = ask(history=told)
        try:
            with waiting(session.encoder) as over:
                if as_json:
                    await answer.result()
                else:
                    await stream(answer, over)
        except TofcError as error:
            if error.reason not in TOO_LONG or not told:
                raise
            del told[: (len(told) + 1) // 2]
        else:
            if forgotten := len(turns) - len(told):
                note(f"the conversation became too long: the first {forgotten} answers are forgotten")
                del turns[:forgotten]
            assert answer.report is not None, "it was iterated to its end"
            return answer.report


def _text(question: str) -> str:
    """What of a question is text: half a surrogate pair is no JSON to many parsers, however it is escaped."""
    return question.encode(errors="surrogateescape").decode(errors="replace")


async def _questions() -> AsyncIterator[str]:
    """The questions on stdin. Raises EncodingError where it is no UTF-8 text at all."""
    while line := await _line():
        for one in split(line, "stdin"):  # several where lines end as on old systems
            if question := stripped(one):
                yield question


async def _line() -> bytes:
    """The next line of stdin, empty at its end; a terminal is prompted.

    Read in a thread of its own that nobody waits for: Ctrl-C leaves it where it is.
    """
    terminal = _is_terminal()
    if terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[bytes] = loop.create_future()

    def tell(line: bytes | Exception) -> None:
        if found.done():
            return
        if isinstance(line, bytes):
            found.set_result(line)
        else:
            found.set_exception(line)

    def read() -> None:
        try:
            line: bytes | Exception = sys.stdin.buffer.readline()
        except (OSError, ValueError) as error:  # closed
            line = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, line)

    threading.Thread(target=read, name=READER, daemon=True).start()
    line = await found
    if terminal and not line:
        note()
    return line


def _is_terminal() -> bool:
    return sys.stdin.isatty()
