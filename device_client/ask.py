"""The work of `device-client ask` without --batch: answers go to stdout, their cost to stderr.

Promises that stdout holds nothing but answers (or JSON), and at least one line for every answer: an empty answer is an
empty line, and line ends before and after an answer are left out. Leaves the connection to `session` and the options to
`cli`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from device_client.picture import Picture
from device_client.reasoning import Reasoning
from device_client.render import cost_line
from device_client.report import Comparison, compare
from device_client.sampling import Sampling
from device_client.session import Answer, Session
from device_client.waiting import waiting
from tofc.terminal import note, note_dim, say, say_json
from tofc.text import encoding_problem, stripped

# A name with such a suffix is taken for a picture, even if the file is missing, and not for a question.
_PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic"}
    | {".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
    | {".svg", ".pdf", ".dng", ".mp4", ".mov"}  # cannot be read: the error names the format
)


def split_arguments(arguments: Sequence[str], more_questions: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split PICTURE... [QUESTION], and the questions given by -q, into (pictures, questions).

    Without -q the last argument is the question. With it, the last argument is a question only if it cannot be a
    picture.

    >>> split_arguments(["cat.png", "what is this?"], [])
    ([PosixPath('cat.png')], ['what is this?'])
    >>> split_arguments(["cat.png"], ["what is this?", "how many?"])
    ([PosixPath('cat.png')], ['what is this?', 'how many?'])
    >>> split_arguments(["cat.heic", "missing.heic"], ["what is this?"])
    ([PosixPath('cat.heic'), PosixPath('missing.heic')], ['what is this?'])
    """
    pictures, questions = list(arguments), list(more_questions)
    if pictures and (not more_questions or (len(pictures) > 1 and not _names_a_picture(pictures[-1]))):
        questions.insert(0, pictures.pop())
    return [Path(picture) for picture in pictures], [_text(question) for question in questions]


def _text(argument: str) -> str:
    """Return a question as it was typed: in an ASCII locale Python turns each byte of UTF-8 into a surrogate."""
    if encoding_problem(argument):
        argument = os.fsencode(argument).decode(errors="surrogateescape")
    return stripped(argument)


def _names_a_picture(argument: str) -> bool:
    suffix = Path(argument).suffix.lower()
    return suffix in _PICTURE_SUFFIXES or os.path.exists(argument)  # False if it is too long for a file name


async def ask_all(
    session: Session,
    pictures: list[Picture],
    questions: Sequence[str],
    *,
    sampling: Sampling,
    reasoning: Reasoning,
    thinking: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Ask the questions one after the other. With `as_json` print one object per answer instead of streaming it."""
    originals = [replace(picture) for picture in pictures]  # copies keep the pixels, for the comparison
    comparison: Comparison | None = None
    for question in questions:
        answer = session.ask(
            pictures, question, sampling=sampling, thinking=thinking, reasoning=reasoning, timeout_s=timeout_s
        )
        with waiting(session.encoder, answer=answer) as stop_waiting:
            if not as_json:
                await stream(answer, stop_waiting)
            report = await answer.result() if answer.report is None else answer.report
        if originals and (as_json or report.bytes_picture):
            comparison = await asyncio.to_thread(compare, originals, session.encoder.encoder.rule)
            originals = []
        if as_json:
            compared = comparison and comparison.to_json()
            say_json({**report.to_json(), "comparison": compared})
        else:
            note(cost_line(report, comparison))


async def stream(answer: Answer, stop_waiting: Callable[[], None]) -> None:
    """Print the answer to stdout as it arrives, and thinking that was asked for to stderr.

    `stop_waiting` is called before anything is printed.
    """
    in_thinking = False  # stderr is within a line of thinking
    shown = False  # stdout is within a line of the answer
    line_ends = ""  # held back: they are printed only if more text follows
    try:
        async for delta in answer:
            stop_waiting()
            if in_thinking and (delta.replaces or not delta.thinking):
                note()
                in_thinking = False
            if delta.replaces:
                if shown and not delta.thinking:
                    show("\n")
                    shown = False
                what = "thinking" if delta.thinking else "answer"
                note(f"the link was lost; asked again, the model gave another {what}:")
            if delta.restart:
                if shown:
                    show("\n")
                shown = False
                note("the text so far was thinking; the answer:")
            if delta.thinking:
                note_dim(delta.text)
                in_thinking = True
                continue
            text = line_ends + delta.text if shown else delta.text.lstrip("\n")
            printed = text.rstrip("\n")
            line_ends = text[len(printed) :]
            if printed:
                show(printed)
                shown = True
    finally:
        await answer.aclose()
        if in_thinking:
            note()
        if shown or answer.report is not None:
            show("\n")


def show(text: str) -> None:
    """Print a part of an answer to stdout and flush."""
    say(text, end="")
