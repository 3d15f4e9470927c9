"""Every question that README and docs/cli.md show is asked as written there, and answered correctly."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from tests.e2e.conftest import MODEL, ROOT, ServerThread
from tofc_lab.demo import QUESTIONS

# What the demo's picture shows (lab/tofc_lab/nano/examples.py): a dog, two cats, a rocket and the sign.
RIGHT_ANSWERS = {"what number is on the sign?": "42", "is there a rocket?": "yes", "is there a dog?": "yes"}
ASK = re.compile(r"^(?:\$ |\.venv/bin/)device-client ask (.*?)(?: +#.*)?$")


def fenced(document: str) -> list[tuple[str, str]]:
    """Return language and text of each fenced block of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def blocks() -> Iterator[list[str]]:
    """Yield the lines of each fenced block without a language."""
    for document in ("README.md", "docs/cli.md"):
        yield from (text.splitlines() for language, text in fenced(document) if not language)


def shown_commands() -> list[list[str]]:
    """Return the arguments of every `device-client ask` that needs no other machine or files."""
    asks = [shlex.split(found[1]) for lines in blocks() for line in lines if (found := ASK.match(line))]
    return [words for words in asks if not {"--batch", "--tls-ca"} & {*words}]


def questions_of(words: list[str]) -> list[str]:
    questions = [words[at + 1] for at, word in enumerate(words) if word in ("-q", "--question")]
    return questions or [words[1]]


@pytest.fixture(scope="module")
def image_server() -> Iterator[ServerThread]:
    """Run a server for all modes that README shows."""
    made = ServerThread(limits=SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS))
    yield made
    made.stop()


def test_readme_shows_questions() -> None:
    assert len(shown_commands()) >= 3
    questions = {question for words in shown_commands() for question in questions_of(words)}
    assert {*QUESTIONS, *questions} <= RIGHT_ANSWERS.keys(), "add the right answer above"


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_a_command_that_readme_shows_is_answered_correctly(image_server: ServerThread, words: list[str]) -> None:
    words = [str(MODEL / "example.jpg") if word == "PICTURE" else word for word in words]
    if "--server" in words:
        del words[(at := words.index("--server")) : at + 2]
    done = subprocess.run(
        [sys.executable, "-m", "device_client", "ask", *words, "--server", image_server.address],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = re.findall(r'"answer": "([^"]*)"', done.stdout) if "--json" in words else done.stdout.splitlines()
    assert answers == [RIGHT_ANSWERS[question] for question in questions_of(words)]


def test_the_python_that_readme_shows_runs(image_server: ServerThread, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (text for language, text in fenced("README.md") if language == "python")
    for placeholder, real in (("127.0.0.1:50061", image_server.address), ("street.jpg", str(MODEL / "example.jpg"))):
        assert placeholder in code
        code = code.replace(placeholder, real)
    exec(compile(code, "README.md", "exec"), {})
    count, _, sign = capsys.readouterr().out.partition("\n")
    assert count.isdigit()  # nano counts badly
    assert sign


def test_the_answers_that_readme_prints_are_right() -> None:
    printed = 0
    for lines in blocks():
        for at, line in enumerate(lines):
            if (found := ASK.match(line)) and line.startswith("$ "):
                questions = questions_of(shlex.split(found[1]))
                # Answers and what they cost alternate.
                assert lines[at + 1 : at + 2 * len(questions) : 2] == [
                    RIGHT_ANSWERS[question] for question in questions
                ]
                printed += len(questions)
    assert printed >= 2
