"""Conversations with a real server: a tiny checkpoint whose template begins thinking, and the shipped model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.sampling import Sampling
from device_client.session import Session
from device_client.transcript import Delta
from edge_server import backend as backends
from edge_server.assemble import Assembled, Assembler, PictureRows
from edge_server.backend import Backend
from edge_server.engine.fake import FakeEngine
from edge_server.server import RunningServer, start
from edge_server.settings import ServerSettings
from tests.e2e.conftest import MODEL, PICTURES, ROOT, ServerThread
from tofc.codec.fake import fake_weights
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import Turn, load_tokenizer
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.special_tokens import CHAT_TEMPLATE

THINKING = CHAT_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a whole tiny checkpoint of random weights, whose prompts end with `<think>`."""
    out: Path = tmp_path_factory.mktemp("thinker")
    fake.write(out, seed=3)
    fake_weights(D=128, H=32, seed=4).save(out)
    (out / "chat_template.jinja").write_text(THINKING)
    return out


class RecordingAssembler(Assembler):
    """An assembler that records its arguments and results."""

    def __init__(self, inner: Assembler) -> None:
        self.inner = inner
        self.asked: list[tuple[list[Turn], int]] = []  # turns, and the number of pictures
        self.made: list[Assembled] = []

    def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
        return self.inner.views(packet, codec_id=codec_id, count=count, last=last)

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], most: int) -> Assembled:
        self.asked.append((list(turns), len(pictures)))
        self.made.append(self.inner.prompt(turns, pictures, most))
        return self.made[-1]


class Thinker:
    """A server with a real tokenizer, template, codec and projector, whose engine gives prepared answers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(Checkpoint.open(folder))
        self.folder = folder
        self.answers: list[str] = []

    async def start(self) -> RunningServer:
        real = backends.load(ServerSettings(model=self.folder))
        await real.engine.stop()
        self.recorded = RecordingAssembler(real.assembler)
        engine = FakeEngine(lambda _: self.ids(self.answers.pop(0)))
        made: Backend = replace(real, assembler=self.recorded, engine=engine)
        return await start(ServerSettings(model=self.folder, port=0, grace_s=0.0), lambda _: made)

    def ids(self, text: str) -> list[int]:
        found: Any = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return list(found)


async def test_a_conversation_about_two_pictures_with_a_model_that_thinks(folder: Path) -> None:
    thinker = Thinker(folder)
    server = await thinker.start()
    try:
        async with Session(Target(address=server.address), TowerEncoder.open(folder)) as session:
            pictures = [session.open(PICTURES / name) for name in ("picture-00.jpg", "picture-01.jpg")]
            thinker.answers = ["two cats\n</think>\n\n2 größe 🐘", "sum</think>no</think>4", "so <think> many"]
            question = "how many </think> cats are there?"
            answer = session.ask(pictures, question, thinking=True)
            pieces = [piece async for piece in answer]
            first = answer.report
            assert first is not None and (first.answer, first.thinking) == ("2 größe 🐘", "two cats")
            assert [p.thinking for p in pieces] == sorted((p.thinking for p in pieces), reverse=True)
            assert first.usage["thinking_tokens"] == len(thinker.ids("two cats\n</think>"))
            assert first.usage["new_tokens"] == len(thinker.ids("two cats\n</think>\n\n2 größe 🐘"))

            second_answer = session.ask(pictures, "and legs?", history=[(question, first.answer)])
            shown = [piece async for piece in second_answer]
            assert shown == [Delta(text="n"), Delta(text="o"), Delta(text="", restart=True), Delta(text="4")]
            second = second_answer.report
            assert second is not None and (second.answer, second.thinking) == ("4", None)
            assert second.bytes_picture == 0

            third = await session.ask(pictures[1:], "why?").result()
            assert (third.answer, third.unanswered) == ("", True)
            assert third.usage["thinking_tokens"] == third.usage["new_tokens"]
    finally:
        await server.stop()
    turns = [("user", question), ("assistant", first.answer), ("user", "and legs?")]
    assert thinker.recorded.asked[1] == ([Turn(role=role, text=text) for role, text in turns], 2)  # type: ignore[arg-type]
    assert [count for _, count in thinker.recorded.asked] == [2, 2, 1]
    think_tokens = thinker.tokenizer.get_added_vocab()
    for made in thinker.recorded.made:  # a </think> in a question is ordinary text
        assert made.ids[-2:] == [think_tokens["<think>"], *thinker.ids("\n")]
        assert think_tokens["</think>"] not in made.ids
        assert made.visual_tokens == made.ids.count(think_tokens["<im_patch>"]) > 0


async def test_the_real_engine_stops_while_thinking_and_samples_as_the_checkpoint_says(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 5.0, "top_k": 0, "eos_token_id": [2], "max_new_tokens": 6}'
    )
    said: dict[Path, list[str]] = {}
    for path in (folder, tmp_path):
        server = await start(ServerSettings(model=path, port=0, grace_s=0.0))
        try:
            async with Session(Target(address=server.address), TowerEncoder.open(path)) as session:
                asked = [
                    session.ask([], "?", sampling=Sampling(max_tokens=most, seed=seed, temperature=warm), thinking=True)
                    for most, seed, warm in ((6, 1, None), (6, 2, None), (0 if path is tmp_path else 6, 1, 0.0))
                ]
                reports = [await one.result() for one in asked]
        finally:
            await server.stop()
        assert all(one.unanswered and not one.answer for one in reports)
        assert all(one.usage["thinking_tokens"] == one.usage["new_tokens"] for one in reports)
        assert reports[2].usage["new_tokens"] == 6 and reports[2].finish_reason == "length"
        said[path] = [one.thinking or "" for one in reports]
    assert len(set(said[folder])) == 1  # greedy: the seed does not matter
    assert len(set(said[tmp_path])) == 3
    assert said[folder][2] == said[tmp_path][2]  # greedy if the question asks for it


def chat(server: ServerThread, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "device_client", "chat", str(MODEL / "example.jpg"), "--server", server.address]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **streams
    )


def test_the_command_with_the_shipped_model() -> None:
    server = ServerThread()  # another test may have sent the picture to the shared one
    try:
        done = chat(server)
        out, err = done.communicate("what number is on the sign?\nis there a rocket?\n", timeout=120)
    finally:
        server.stop()
    assert (done.returncode, out) == (0, "42\nyes\n"), err
    first, second = err.splitlines()
    assert "(1 view, " in first and second.startswith("picture 0 B: the server has it")


def test_ctrl_c_between_questions(server: ServerThread) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # if it is ignored (`make test &`), the child ignores it too
    running = chat(server, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    signal.signal(signal.SIGINT, before)
    assert running.stdin is not None and running.stdout is not None
    running.stdin.write("is there a rocket?\n")
    running.stdin.flush()
    assert running.stdout.readline() == "yes\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "") and err.endswith("device-client: stopped\n")


def test_two_pictures_of_the_shipped_model(server: ServerThread, encoder: TowerEncoder) -> None:
    async def ask() -> tuple[int, int, str]:
        async with Session(Target(address=server.address), encoder) as session:
            both = [session.open(PICTURES / name) for name in ("picture-00.jpg", "picture-01.jpg")]
            report = await session.ask(both, "is there a dog?").result()
            return report.views, report.features, report.answer

    views, features, answer = asyncio.run(ask())
    assert views == 2 and features == 2 * 36 and answer in ("yes", "no")
