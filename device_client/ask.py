"""Asking from the command line: questions about pictures, answers on stdout, their cost on stderr.

Promises that stdout holds answers (or JSON) and nothing else, and a line at least for every answer: an empty one is an
empty line, and line ends around one are left out. Leaves the stream to `session`, parsing arguments to `cli`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from device_client.picture import Picture
from device_client.render import truth
from device_client.report import Comparison, compare
from device_client.session import Answer, Sampling, Session
from device_client.waiting import waiting
from shared.terminal import note, printable, say, say_json
from shared.text import problem, stripped

# What a name must look like to be taken for a picture that is missing rather than for a question.
_PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".jxl",
        ".heic",
        ".heif",
        ".hif",
    }
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".svg", ".pdf", ".dng", ".mp4", ".mov"}  # the last ones get a sentence
)


def split_words(words: Sequence[str], more: Sequence[str]) -> tuple[list[Path], list[str]]:
    """PICTURE... [QUESTION] and the questions given by -q → (pictures, questions).

    Without -q the last word is the question; with it only a word that can be no picture is.

    >>> split_words(["cat.png", "what is this?"], [])
    ([PosixPath('cat.png')], ['what is this?'])
    >>> split_words(["cat.png"], ["what is this?", "how many?"])
    ([PosixPath('cat.png')], ['what is this?', 'how many?'])
    >>> split_words(["cat.heic", "missing.heic"], ["what is this?"])
    ([PosixPath('cat.heic'), PosixPath('missing.heic')], ['what is this?'])
    """
    pictures, questions = list(words), list(more)
    if pictures and (not more or (len(pictures) > 1 and not _names_a_picture(pictures[-1]))):
        questions.insert(0, pictures.pop())
    return [Path(picture) for picture in pictures], [_text(question) for question in questions]


def _text(word: str) -> str:
    """A question as it was typed: a locale of ASCII leaves what is UTF-8 as single bytes."""
    return stripped(os.fsencode(word).decode(errors="surrogateescape") if problem(word) else word)


def _names_a_picture(word: str) -> bool:
    return Path(word).suffix.lower() in _PICTURE_SUFFIXES or os.path.exists(word)  # False for what is too long a name


async def ask_all(
    session: Session,
    pictures: list[Picture],
    questions: Sequence[str],
    *,
    sampling: Sampling,
    thinking: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Put the questions one after the other. With ``as_json`` one object a line instead of streamed text."""
    originals = [replace(picture) for picture in pictures]  # keep their pixels until they have been compared
    comparison: Comparison | None = None
    for question in questions:
        answer = session.ask(pictures, question, sampling=sampling, thinking=thinking, timeout_s=timeout_s)
        with waiting(session.encoder) as over:
            if not as_json:
                await stream(answer, over)
            report = await answer.result() if answer.report is None else answer.report
        if originals and (as_json or report.bytes_picture):
            comparison = await asyncio.to_thread(compare, originals, session.encoder.encoder.rule)
            originals = []
        if as_json:
            compared = comparison and comparison.to_json()
            say_json({**report.to_json(), "comparison": compared})
        else:
            note(truth(report, comparison))


async def stream(answer: Answer, over: Callable[[], None]) -> None:
    """The answer to stdout as it comes; thinking, where it was asked for, to stderr. ``over`` ends the waiting."""
    thought = False  # a line of it has been begun
    shown, ends = False, ""  # of the answer, and line ends that are held back: at its end there is one
    try:
        async for piece in answer:
            over()
            if thought and (piece.again or not piece.thinking):
                note()
                thought = False
            if piece.again:
                if shown and not piece.thinking:
                    show("\n")
                    shown = False
                what = "thinking" if piece.thinking else "answer"
                note(f"the link was lost and the {what} came out differently; it begins again:")
            if piece.anew:
                if shown:
                    show("\n")
                shown = False
                note("what came so far was still thinking; the answer:")
            if piece.thinking:
                typer.secho(printable(piece.text), err=True, nl=False, dim=True)  # plain where stderr is no terminal
                thought = True
                continue
            text = ends + piece.text if shown else piece.text.lstrip("\n")
            kept = text.rstrip("\n")
            ends = text[len(kept) :]
            if kept:
                show(kept)
                shown = True
    finally:
        await answer.aclose()
        if thought:
            note()
        if shown or answer.report is not None:
            show("\n")


def show(text: str) -> None:
    """To stdout, at once."""
    say(text, end="")
