"""The file of a batch's answers: which content it may have, and who may write to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_client import batch, batch_out
from device_client.batch_out import Answers, open_out
from tofc.errors import UsageError

ASKED = [{"image": "a.png", "question": "one", "id": 7}, {"image": "a.png", "question": "two", "answer": "label"}]
GIVEN = [ASKED[0], {"image": "a.png", "question": "two", "answer_given": "label"}]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "q.jsonl", *ASKED)


def write(path: Path, *lines: dict[str, Any], end: str = "\n") -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + end)
    return path


def kept(out: Path, questions: Path) -> tuple[int, int]:
    with open_out(out, batch.read_lines(questions), questions=questions, resume=True) as answers:
        return answers.done, answers.failed


def refused(out: Path, questions: Path, match: str, *, resume: bool = True) -> None:
    before = out.read_bytes()
    lines = batch.read_lines(questions)
    with pytest.raises(UsageError, match=match), open_out(out, lines, questions=questions, resume=resume):
        raise AssertionError("it was opened")
    assert out.read_bytes() == before


def test_a_line_is_done_when_it_has_an_answer_or_an_error(questions: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "out.jsonl", GIVEN[0] | {"answer": "", "views": 1}, GIVEN[1] | {"error": "no"})
    assert kept(out, questions) == (2, 1)
    data = out.read_bytes()
    for start in (b"", b'{"ima', b'{"image": "a.png", "question": "one", "id": 7', data[:60]):
        out.write_bytes(start)  # where a process ended
        assert kept(out, questions) == (0, 0) and out.read_bytes() == b""
    out.write_bytes(data.replace(b"\n", b"\r\n")[: data.index(b"\n") + 2])
    assert kept(out, questions) == (1, 0)
    out.write_bytes(b"\xef\xbb\xbf" + data.removesuffix(b"\n"))  # an editor's mark, and no end
    assert kept(out, questions) == (2, 1) and out.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("count", [1, 2])
def test_a_copy_of_the_questions_is_not_resumed(questions: Path, tmp_path: Path, count: int, end: str) -> None:
    refused(write(tmp_path / "copy.jsonl", *ASKED[:count], end=end), questions, "line 1|an answer to line 1")
    labelled = write(tmp_path / "labelled.jsonl", ASKED[1])
    refused(write(tmp_path / "copy.jsonl", ASKED[1], end=end), labelled, "line 1|an answer to line 1")


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_the_questions_themselves_are_not_written_into(
    questions: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    for resume in (True, False):
        refused(questions, questions, "is the file of --batch itself; name another file", resume=resume)
    link(tmp_path / "other.jsonl", questions)
    refused(tmp_path / "other.jsonl", questions, "is the file of --batch itself")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("hello\n", "line 1 differs"),
        ("hello", "not the start of an answer to line 1"),
        ('{"image": "a.png", "question": "another", "answer": "yes"}\n', "line 1 differs"),
        ('{"image": "a.png", "question": "one", "id": 8, "answer": "yes"}\n', "line 1 differs"),
        ('{"image": "a.png", "question": "one", "id": 7, "note": "mine", "answer": "yes"}\n', "line 1 differs"),
        ("\n", "line 1 differs"),
        ("[1]\n", "line 1 differs"),
    ],
)
def test_anything_else_is_left_as_it_is(questions: Path, tmp_path: Path, text: str, match: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(text)
    refused(out, questions, match)
    refused(out, questions, "exists; resume where it ends with --resume", resume=False)
    write(out, *(one | {"answer": "yes"} for one in [*GIVEN, GIVEN[0]]))
    refused(out, questions, "has 3 lines, but there are only 2 questions")


def test_an_out_that_cannot_be_written(questions: Path, tmp_path: Path) -> None:
    lines = batch.read_lines(questions)
    for out, error, match in (
        (tmp_path / "nowhere" / "out.jsonl", UsageError, "the folder of --out .* does not exist; make it first"),
        (tmp_path, IsADirectoryError, "directory"),
    ):
        with pytest.raises(error, match=match), open_out(out, lines, questions=questions, resume=False):
            pass
    with (
        pytest.raises(UsageError, match="/dev/null is not a file; only a file can be resumed"),
        open_out(Path("/dev/null"), lines, questions=questions, resume=True),
    ):
        pass
    with open_out(Path("/dev/null"), lines, questions=questions, resume=False) as answers:
        assert (answers.done, answers.failed) == (0, 0)


def test_a_new_file_that_received_nothing_is_removed(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = batch.read_lines(questions)
    with open_out(out, lines, questions=questions, resume=False):
        assert out.exists()
    assert not out.exists()
    out.touch()  # not ours
    with open_out(out, lines, questions=questions, resume=False) as answers:
        assert answers.done == 0
    assert out.exists()


def hold(out: Path, questions: Path, ready: Any) -> None:
    with open_out(out, batch.read_lines(questions), questions=questions, resume=True) as answers:
        answers.file.write(json.dumps(GIVEN[0] | {"answer": "yes"}).encode() + b"\n")
        ready.set()
        signal.pause()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_one_batch_writes_and_its_lock_ends_with_it(questions: Path, tmp_path: Path, ending: signal.Signals) -> None:
    out, spawning = tmp_path / "out.jsonl", multiprocessing.get_context("spawn")
    ready = spawning.Event()
    other = spawning.Process(target=hold, args=(out, questions, ready))
    other.start()
    try:
        assert ready.wait(60)
        refused(out, questions, "another batch is writing to .*out.jsonl; wait until it has ended")
        refused(out, questions, "another batch is writing", resume=False)
    finally:
        os.kill(other.pid or 0, ending)
        other.join()
    assert kept(out, questions) == (1, 0)


def test_the_second_does_not_write_into_a_file_that_the_first_removed(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened by the second, removed by the first, which received nothing, then locked by the second."""
    out, lines = tmp_path / "out.jsonl", batch.read_lines(questions)
    opened: list[Answers] = []
    lock = batch_out._lock

    def late(file: Any, path: Path) -> None:
        if not opened:
            opened.append(Answers(file=file))
            path.unlink()
        lock(file, path)

    monkeypatch.setattr(batch_out, "_lock", late)
    with open_out(out, lines, questions=questions, resume=False) as answers:
        answers.file.write(b"{}\n")
        assert out.read_bytes() == b"{}\n", "it went into the file that has the name"
