"""A conversation about pictures: one question per line of stdin, each asked with the turns before it.

Promises that pictures are sent once, that thinking is not part of a turn, that a conversation continues after a
question that is refused, that its older half is dropped when it becomes too long for the server or the model, and that
every question gets at least one line on stdout, for programs that wait for it: an empty one if it is refused. Leaves
showing answers to `ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

from device_client.ask import stream
from device_client.exit_codes import exit_code
from device_client.history import TOO_LONG, without_older_half
from device_client.picture import Picture
from device_client.reasoning import Reasoning
from device_client.render import cost_line
from device_client.report import Report
from device_client.sampling import Sampling
from device_client.session import Answer, Session
from device_client.waiting import waiting
from tofc.errors import CallError, UsageError
from tofc.terminal import note, say, say_json
from tofc.text import split, stripped

READER = "tofc-stdin"  # name of the thread that waits for a line


async def converse(
    session: Session,
    pictures: list[Picture],
    *,
    sampling: Sampling,
    reasoning: Reasoning,
    thinking: bool,
    timeout_s: float | None,
    as_json: bool = False,
) -> int:
    """Answer questions until stdin ends; return the exit code of the last one that failed, or 0 if all were answered.

    A failed question is not a turn. With `as_json` print one object per question instead of streaming the answer, with
    a field `error` if the question was refused. Raises an error that later questions would end with too.
    """
    turns: list[tuple[str, str]] = []
    code = 0
    async for question in _questions():
        ask = partial(
            session.ask,
            pictures,
            question,
            sampling=sampling,
            thinking=thinking,
            reasoning=reasoning,
            timeout_s=timeout_s,
        )
        try:
            report = await _answered(ask, turns, session, as_json)
        except (UsageError, CallError) as error:
            of_this_question = isinstance(error, UsageError) or error.reason in TOO_LONG
            if not (of_this_question or (turns and _is_terminal())):  # a person may wait and ask again
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
            note(cost_line(report, None))
        if report.answer.strip():
            turns.append((question, report.answer))
    return code


async def _answered(
    ask: Callable[..., Answer], turns: list[tuple[str, str]], session: Session, as_json: bool
) -> Report:
    """Ask with `turns` as the history and show the answer; while they are too long, drop their older half.

    If even the question alone is too long, `turns` stays as it is.
    """
    history = list(turns)
    while True:
        answer = ask(history=history)
        try:
            with waiting(session.encoder, answer=answer) as stop_waiting:
                if as_json:
                    await answer.result()
                else:
                    await stream(answer, stop_waiting)
        except CallError as error:
            history = without_older_half(history, error)
        else:
            if forgotten := len(turns) - len(history):
                note(f"the conversation became too long: the first {forgotten} answers are forgotten")
                del turns[:forgotten]
            assert answer.report is not None, "it was iterated to its end"
            return answer.report


def _text(question: str) -> str:
    """Replace lone surrogates: many JSON parsers refuse them, even when they are escaped."""
    return question.encode(errors="surrogateescape").decode(errors="replace")


async def _questions() -> AsyncIterator[str]:
    """Yield the questions on stdin. Raises EncodingError if its text is UTF-16 or UTF-32."""
    while line := await _line():
        for one in split(line, "stdin"):  # several where lines end with \r only
            if question := stripped(one):
                yield question


async def _line() -> bytes:
    """Return the next line of stdin, empty at its end; on a terminal, show a prompt.

    It is read in a separate thread that nobody waits for, so that Ctrl-C works while it blocks.
    """
    terminal = _is_terminal()
    if terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def deliver(line: bytes | Exception) -> None:
        if future.done():
            return
        if isinstance(line, bytes):
            future.set_result(line)
        else:
            future.set_exception(line)

    def read() -> None:
        try:
            line: bytes | Exception = sys.stdin.buffer.readline()
        except Exception as error:  # raised again below, in the thread of the command
            line = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, line)

    threading.Thread(target=read, name=READER, daemon=True).start()
    line = await future
    if terminal and not line:
        note()
    return line


def _is_terminal() -> bool:
    return sys.stdin.isatty()
