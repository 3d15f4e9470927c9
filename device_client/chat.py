"""A conversation about pictures: a question a line on stdin, each asked with the turns before it.

Promises that pictures are sent once, that what the model thought is no part of a turn, and that a conversation goes
on: after a question that is refused, and when it has become too long for the server or the model, whereupon its older
half is forgotten. Leaves showing answers to `ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from functools import partial

from device_client.ask import stream
from device_client.errors import UseError, exit_code
from device_client.picture import Picture
from device_client.render import truth
from device_client.report import Report
from device_client.session import Answer, Sampling, Session
from device_client.waiting import waiting
from shared.rpc.errors import TofcError

READER = "tofc-stdin"  # the thread that waits for a line
TOO_LONG = ("QUESTION_TOO_LONG", "PROMPT_TOO_LONG")  # what fewer turns may cure


async def converse(
    session: Session, pictures: list[Picture], *, sampling: Sampling, thinking: bool, timeout_s: float | None
) -> int:
    """Until the end of stdin; returns the exit code of the last question that had no answer, 0 where all had one.

    Such a question is no turn. Raises what every further question would end with too.
    """
    turns: list[tuple[str, str]] = []
    code = 0
    while line := await _line():
        question = line.strip()
        if not question:
            continue
        ask = partial(session.ask, pictures, question, sampling=sampling, thinking=thinking, timeout_s=timeout_s)
        try:
            report = await _answered(ask, turns, session)
        except (UseError, TofcError) as error:
            of_the_question = isinstance(error, UseError) or error.reason in TOO_LONG
            if not (of_the_question or (turns and _is_terminal())):  # a person may wait and ask again
                raise
            code = exit_code(error)
            print(f"device-client: {error}", file=sys.stderr, flush=True)
            continue
        print(truth(report, None), file=sys.stderr, flush=True)
        if report.answer.strip():
            turns.append((question, report.answer))
    return code


async def _answered(ask: Callable[..., Answer], turns: list[tuple[str, str]], session: Session) -> Report:
    """Show the answer to what ``ask`` asks after ``turns``, of which the older half goes while they are too long.

    They all stay where even the question alone is.
    """
    told = list(turns)
    while True:
        answer = ask(history=told)
        try:
            with waiting(session.encoder) as over:
                await stream(answer, over)
        except TofcError as error:
            if error.reason not in TOO_LONG or not told:
                raise
            del told[: (len(told) + 1) // 2]
        else:
            if forgotten := len(turns) - len(told):
                print(f"the conversation became too long: the first {forgotten} answers are forgotten", file=sys.stderr)
                del turns[:forgotten]
            assert answer.report is not None, "it was iterated to its end"
            return answer.report


async def _line() -> str:
    """The next line of stdin, empty at its end; a terminal is prompted.

    Read in a thread of its own that nobody waits for: Ctrl-C leaves it where it is.
    """
    if sys.stdin is None:  # closed before the start
        return ""
    terminal = _is_terminal()
    if terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str] = loop.create_future()

    def tell(line: str | Exception) -> None:
        if found.done():
            return
        if isinstance(line, str):
            found.set_result(line)
        else:
            found.set_exception(line)

    def read() -> None:
        try:
            # What is not UTF-8 is told of its question, which it does not end the conversation with.
            line: str | Exception = sys.stdin.buffer.readline().decode(errors="surrogateescape")
        except (OSError, ValueError) as error:  # closed
            line = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, line)

    threading.Thread(target=read, name=READER, daemon=True).start()
    line = await found
    if terminal and not line:
        print(file=sys.stderr, flush=True)
    return line


def _is_terminal() -> bool:
    return sys.stdin.isatty()
