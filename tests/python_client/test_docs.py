"""Every block of Python that README.md and docs/python.md show is run as it stands there."""

from __future__ import annotations

import ast
import csv
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge_server import credentials
from tests.e2e.conftest import ROOT, ServerThread
from tests.python_client.conftest import EXAMPLE
from tofc.model.open_image import open_image

ADDRESS = "127.0.0.1:50061"
FIVE_LINES = """\
from tofc import Client
with Client("127.0.0.1:50061") as edge:            # Client(":local:") runs both halves in this process, no server
    picture = edge.picture("street.jpg")           # path, bytes, PIL image, array; sent once
    print(picture.ask("how many cats are there?").text)
    for piece in picture.ask("what is on the sign?", stream=True): print(piece.text, end="")
"""


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


PYTHON_MD = blocks("docs/python.md")
README = blocks("README.md")


class FakeCamera:
    """OpenCV's interface: three frames in BGR, then none."""

    frames = 3

    def __init__(self, number: int) -> None:
        assert number == 0

    def read(self) -> tuple[bool, Any]:
        self.frames -= 1
        return (True, np.asarray(open_image(EXAMPLE))[:, :, ::-1]) if self.frames >= 0 else (False, None)


Run = Callable[[str], str]


@pytest.fixture
def run(
    server: ServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a block beside the files that blocks name, with the address of a server that runs; returns what it prints."""
    shutil.copy(EXAMPLE, tmp_path / "street.jpg")
    (tmp_path / "pictures").mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(EXAMPLE, tmp_path / "pictures" / name)
    credentials.write(tmp_path / "credentials", ["edge.example.org"])
    monkeypatch.chdir(tmp_path)
    camera = ModuleType("cv2")
    camera.VideoCapture = FakeCamera  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", camera)

    def run(block: str) -> str:
        exec(compile(block.replace(ADDRESS, server.address), "block", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    return run


def test_the_five_lines_are_the_first_block(run: Run) -> None:
    assert ast.dump(ast.parse(PYTHON_MD[0])) == ast.dump(ast.parse(FIVE_LINES))
    assert re.fullmatch(r"\d\n42", run(FIVE_LINES))


@pytest.mark.parametrize("block", README + PYTHON_MD, ids=lambda block: block.strip().splitlines()[0])
def test_a_block_runs_as_it_stands(run: Run, block: str) -> None:
    printed = run(block)
    assert ("print(" in block) == bool(printed)


def test_a_folder_becomes_a_table(run: Run, tmp_path: Path) -> None:
    (block,) = (one for one in PYTHON_MD if "csv" in one)
    run(block)
    with open(tmp_path / "answers.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["picture", "dog", "sign", "bytes"]
    assert [row[:3] for row in rows] == [["a.jpg", "yes", "42"], ["b.jpg", "yes", "42"]]


def test_every_frame_of_a_camera_is_asked_about(run: Run) -> None:
    (block,) = (one for one in PYTHON_MD if "cv2" in one)
    assert run(block) == "yes\n" * FakeCamera.frames


@pytest.mark.parametrize("block", README + PYTHON_MD, ids=lambda block: block.strip().splitlines()[0])
def test_a_block_is_short(block: str) -> None:
    assert len([line for line in block.splitlines() if line.strip()]) <= 11
