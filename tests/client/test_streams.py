"""The real commands with closed, full, narrow and abandoned standard streams, and text that would control a terminal.

The server is the small fake one; pictures go as files, so that a command starts without torch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import FakeServer
from tofc.errors import InvalidRequestError
from tofc.model.checkpoint import ModelIdentity
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[2]
DEVICE = (sys.executable, "-m", "device_client")
SERVER = (sys.executable, "-m", "edge_server")
LAB = (sys.executable, "-c", "from tofc_lab.cli import app; app()")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ESCAPES = "\x1b]0;mine\x07\x9b31m\x00\x08\x7f"


@pytest.fixture
def image_server(serving: FakeServer) -> FakeServer:
    """The fake server takes image files."""
    origin = ModelIdentity.read(NANO)
    serving.model_id, serving.codec_id = origin.model_id, origin.codec_id
    serving.limits.image_bytes = serving.limits.image_pixels = 1_000_000
    return serving


def to(server: FakeServer, **more: str) -> dict[str, str]:
    """Return the environment of a command that asks this server."""
    address = {"TOFC_DEVICE_SERVER": f"127.0.0.1:{server.port}", "TOFC_DEVICE_MODE": "image"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "shared")]), **address, **more}


def shell(redirected: str, *arguments: object, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command by a shell that closes or redirects its streams."""
    command = ["sh", "-c", f'exec "$@" {redirected}', "sh", *map(str, arguments)]
    settings = {"stdin": subprocess.DEVNULL, **settings}
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **settings)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_break_nothing_else(image_server: FakeServer, small: Path, tmp_path: Path, closed: str) -> None:
    done = shell(closed, *DEVICE, "ask", small, "one", env=to(image_server))
    assert done.returncode == 0
    assert done.stdout == (b"" if "1" in closed or closed.startswith(">") or " >&-" in closed else b"yes to one\n")
    assert (b"picture" in done.stderr) == ("2>&-" not in closed) and b"Traceback" not in done.stderr
    questions, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    questions.write_text('{"image": "small.png", "question": "one"}\n{"image": "none.png", "question": "two"}\n')
    done = shell(closed, *DEVICE, "ask", "--batch", questions, "--out", out, env=to(image_server))
    assert done.returncode == 4
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["answer"] == "yes to one" and "none.png" in second["error"], "and no error message among the answers"
    assert shell(closed, *DEVICE, "chat", small, env=to(image_server)).returncode == 0


def test_a_batch_resumes_where_its_disk_was_full(image_server: FakeServer, small: Path, tmp_path: Path) -> None:
    """A limit of the file size stands for a full disk: the part of a line that fits is written, and no more."""
    questions, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"image": "small.png", "question": f"{number}?"}) for number in range(9)]
    questions.write_text("\n".join(lines))
    command = (*DEVICE, "ask", "--batch", questions, "--out", out)
    narrow = ["sh", "-c", 'ulimit -f 3; exec "$@"', "sh", *map(str, command)]
    done = subprocess.run(narrow, env=to(image_server), capture_output=True, timeout=120, check=False)
    assert done.returncode == 2 and f"device-client: {out}: file too large\n" in done.stderr.decode()
    assert not out.read_bytes().endswith(b"\n")
    assert shell("", *command, "--resume", env=to(image_server)).returncode == 0
    assert [json.loads(line)["answer"] for line in out.read_text().splitlines()] == [f"yes to {n}?" for n in range(9)]
    assert len(image_server.received("ask")) == 10, "the line that did not fit was asked again"


@pytest.mark.parametrize("command", [(*SERVER, "info", "127.0.0.1:1"), (*LAB, "split", "none", "--out", "x")])
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_the_other_commands_too(command: tuple[str, ...], closed: str) -> None:
    done = shell(closed, *command)
    assert done.returncode == (1 if "info" in command else 2) and done.stdout == b""
    assert len(done.stderr.splitlines()) == ("2>&-" not in closed), done.stderr


def abandoned(*command: object, env: dict[str, str], stdin: bytes = b"", errors: bool = False) -> tuple[int, bytes]:
    """Return (exit code, stderr) of a command whose stdout (or stderr) nobody reads any more."""
    reads, writes = os.pipe()
    os.close(reads)
    streams = {"stderr": writes, "stdout": subprocess.PIPE} if errors else {"stdout": writes, "stderr": subprocess.PIPE}
    done = subprocess.run([*map(str, command)], input=stdin, env=env, timeout=120, check=False, **streams)
    os.close(writes)
    return done.returncode, done.stderr or b""


def test_a_reader_that_has_gone_ends_a_command_quietly(image_server: FakeServer, small: Path, tmp_path: Path) -> None:
    env = to(image_server)
    assert abandoned(*DEVICE, "ask", small, "-q", "one", "-q", "two", env=env) == (141, b"")
    assert abandoned(*DEVICE, "ask", small, "one", "--json", env=env) == (141, b"")
    assert abandoned(*DEVICE, "chat", small, env=env, stdin=b"one\ntwo\n") == (141, b"")
    assert abandoned(*DEVICE, "ask", small, "one", env=env, errors=True) == (141, b"")
    (tmp_path / "q.jsonl").write_text('{"image": "small.png", "question": "one"}\n')
    batch = ("ask", "--batch", tmp_path / "q.jsonl", "--out")
    code, stderr = abandoned(*DEVICE, *batch, "/dev/stdout", env=env)
    assert code == 141 and b"Traceback" not in stderr
    for command in (DEVICE, SERVER, LAB):
        assert abandoned(*command, "--help", env=env) == (141, b"")
        assert abandoned(*command, "--nothing", env=env, errors=True) == (141, b"")


def test_a_full_disk_behind_stdout_is_one_line(image_server: FakeServer, small: Path) -> None:
    done = shell(">/dev/full", *DEVICE, "ask", small, "one", env=to(image_server))
    assert (done.returncode, done.stderr) == (2, b"device-client: stdout: no space left on device\n")
    for command in (DEVICE, SERVER, LAB):
        done = shell(">/dev/full", *command, "--help")
        assert (done.returncode, done.stderr) == (2, b"the output could not be written: no space left on device\n")
        for unwritable in ("2>/dev/full", "2</dev/null"):
            assert shell(unwritable, *command, "--nothing").returncode == 2
    for unwritable in ("2>/dev/full", "2</dev/null"):
        assert shell(unwritable, *DEVICE, "ask", small, "one", env=to(image_server)).returncode == 2
        assert shell(unwritable, *DEVICE, "ask", "none.png", "one", env=to(image_server)).returncode == 2


def test_characters_that_a_stream_lacks_are_escaped(image_server: FakeServer, small: Path, tmp_path: Path) -> None:
    env = to(image_server, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    for command in (
        (*DEVICE, "--help"),
        *((*DEVICE, one, "--help") for one in ("ask", "chat", "inspect")),
        *((*SERVER, one, "--help") for one in ("serve", "info", "credentials")),
        (*LAB, "train-codec", "--help"),
    ):
        done = shell("", *command, env=env)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()
    assert shell("", *DEVICE, "ask", "--help", env=to(image_server, PYTHONIOENCODING="ascii")).returncode == 0
    image_server.reply_start = "22 °C 🐈 ×"
    done = shell("", *DEVICE, "ask", small, "one", env=env)
    assert done.returncode == 0 and done.stdout == b"22 \\xb0C \\U0001f408 \\xd7 to one\n"
    done = shell("", *DEVICE, "ask", small, "×?", "--json", env=env)
    assert json.loads(done.stdout)["answer"] == "22 °C 🐈 × to ×?", "JSON's own escapes"
    (tmp_path / "q.jsonl").write_text('{"image": "small.png", "question": "÷"}\n', encoding="utf-8")
    done = shell("", *DEVICE, "ask", "--batch", tmp_path / "q.jsonl", "--out", tmp_path / "o.jsonl", env=env)
    assert done.returncode == 0
    assert json.loads((tmp_path / "o.jsonl").read_bytes())["answer"] == "22 °C 🐈 × to ÷"


def test_nothing_that_is_printed_controls_a_terminal(image_server: FakeServer, small: Path, tmp_path: Path) -> None:
    image_server.fail = InvalidRequestError(f"no{ESCAPES}\nno", reason="QUESTION_TOO_LONG")
    image_server.reply_start = f"yes{ESCAPES}"
    written = "yes\\x1b]0;mine\\x07\\x9b31m\\x00\\x08\\x7f"
    env = to(image_server)
    done = shell("", *DEVICE, "ask", small, "one", env=env)
    assert done.stdout.decode() == f"{written} to one\n"
    found = json.loads(shell("", *DEVICE, "ask", small, "one", "--json", env=env).stdout)
    assert found["answer"] == f"yes{ESCAPES} to one"
    done = shell("", *DEVICE, "chat", small, "--show-thinking", env=env, input=b"fail\n", stdin=None)
    assert done.stderr.decode() == "device-client: no" + written.removeprefix("yes") + "\\nno\n"
    image_server.tokens = [{"text": f"hm{ESCAPES}", "thinking": True}, {"text": "42"}]
    done = shell("", *DEVICE, "ask", small, "one", "--show-thinking", env=env)
    assert done.stdout == b"42\n" and done.stderr.decode().startswith("hm\\x1b]0;mine")


def test_names_of_files_do_not_control_a_terminal(image_server: FakeServer, tmp_path: Path) -> None:
    name = b"a\x1b[31m\n\x07" + "\x9b1m".encode() + b"\xff\x9b.png"
    env, path = to(image_server), os.fsencode(tmp_path) + b"/" + name
    wrong = [
        ["ask", path, "one"],
        ["chat", path],
        ["inspect", path, "--out", tmp_path / "map.png"],
        ["ask", tmp_path / "none.png", "one", "--token-file", path],
        ["ask", tmp_path / "none.png", "one", "--model", path],
        ["ask", "--batch", path, "--out", tmp_path / "out.jsonl"],
        [b"--" + name],
        ["ask", b"--" + name],
        [name],
    ]
    with open(path, "wb") as file:
        file.write(b"no picture")
    for arguments in (*wrong[:3], *wrong[6:]):
        done = subprocess.run([*DEVICE, *arguments], env=env, capture_output=True, timeout=120, check=False)
        stderr = done.stderr.decode()
        assert done.returncode == 2 and not CONTROLS.search(stderr), stderr
        assert len(stderr.splitlines()) == 1 or "Usage" in stderr
    os.remove(path)
    for arguments in wrong[:6]:
        done = subprocess.run([*DEVICE, *arguments], env=env, capture_output=True, timeout=120, check=False)
        stderr = done.stderr.decode()
        assert done.returncode == 2 and not CONTROLS.search(stderr) and len(stderr.splitlines()) == 1, stderr
    for arguments in ([*SERVER, "serve", "--model", path], [*LAB, "split", path, "--out", tmp_path / "x"]):
        done = subprocess.run(arguments, capture_output=True, timeout=120, check=False)
        stderr = done.stderr.decode()
        assert done.returncode == 2 and not CONTROLS.search(stderr) and len(stderr.splitlines()) == 1, stderr


def test_a_program_may_wait_for_a_line_after_every_question(image_server: FakeServer, small: Path) -> None:
    image_server.fail = InvalidRequestError("too much", reason="QUESTION_TOO_LONG")
    image_server.tokens = [{"text": ""}]
    with subprocess.Popen(
        [*DEVICE, "chat", str(small)], env=to(image_server), stdin=-1, stdout=-1, stderr=subprocess.DEVNULL
    ) as chat:
        assert chat.stdin is not None and chat.stdout is not None
        for question, speech, line in (
            (b"one\n", [{"text": ""}], b"\n"),
            (b"fail\n", [], b"\n"),
            (b"\xff\n", [], b"\n"),
            (b"\xef\xbb\xbftwo\r\n", [], b"yes to two\n"),
            (b"three\n", [{"text": "\nfour\n"}], b"four\n"),
        ):
            image_server.tokens = speech
            chat.stdin.write(question)
            chat.stdin.flush()
            assert chat.stdout.readline() == line, question
        chat.stdin.close()
        assert chat.stdout.read() == b""
    assert chat.returncode == 2, "of the last question that had no answer"
