"""Every question that README shows is asked as it stands there, and answered rightly."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from lab.demo import QUESTIONS
from tests.e2e.conftest import MODEL, ROOT, ServerThread

# What the demo's picture shows (lab/examples.py): a dog, two cats, a rocket and the sign.
RIGHT = {"what number is on the sign?": "42", "is there a rocket?": "yes", "is there a dog?": "yes"}
ASK = re.compile(r"^(?:\$ |\.venv/bin/)device-client ask (.*?)(?: +#.*)?$")


def blocks() -> Iterator[list[str]]:
    """The lines of each fenced block."""
    for block in re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S):
        yield block.splitlines()


def shown() -> list[list[str]]:
    """The words behind every `device-client ask` about a picture on this machine."""
    asks = [shlex.split(found[1]) for lines in blocks() for line in lines if (found := ASK.match(line))]
    return [words for words in asks if not {"--batch", "--tls-ca"} & {*words}]


def asked(words: list[str]) -> list[str]:
    questions = [words[at + 1] for at, word in enumerate(words) if word in ("-q", "--question")]
    return questions or [words[1]]


@pytest.fixture(scope="module")
def taking() -> Iterator[ServerThread]:
    """A server for every mode that README shows."""
    made = ServerThread(limits=SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS))
    yield made
    made.stop()


def test_readme_shows_questions() -> None:
    assert len(shown()) >= 3
    questions = {question for words in shown() for question in asked(words)}
    assert {*QUESTIONS, *questions} <= RIGHT.keys(), "add the right answer above"


@pytest.mark.parametrize("words", shown(), ids=" ".join)
def test_a_command_that_readme_shows_is_answered_rightly(taking: ServerThread, words: list[str]) -> None:
    words = [str(MODEL / "example.jpg") if word == "PICTURE" else word for word in words]
    if "--server" in words:
        del words[(at := words.index("--server")) : at + 2]
    done = subprocess.run(
        [sys.executable, "-m", "device_client", "ask", *words, "--server", taking.address],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = re.findall(r'"answer": "([^"]*)"', done.stdout) if "--json" in words else done.stdout.splitlines()
    assert answers == [RIGHT[question] for question in asked(words)]


def test_the_answers_that_readme_prints_are_right() -> None:
    printed = 0
    for lines in blocks():
        for at, line in enumerate(lines):
            if (found := ASK.match(line)) and line.startswith("$ "):
                questions = asked(shlex.split(found[1]))
                # Answers and what they cost alternate.
                assert lines[at + 1 : at + 2 * len(questions) : 2] == [RIGHT[question] for question in questions]
                printed += len(questions)
    assert printed >= 2
