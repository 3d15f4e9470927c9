"""The server process that is attacked, and the questions that well-behaved devices ask it.

Promises to detect wrong answers: the right answer is the one that the server gave before any attack. Leaves the attacks
to the other modules.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.processes import resident_mb
from device_client.encoder import Encoder, TowerEncoder
from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.picture import Picture
from device_client.retry_policy import RetryPolicy
from device_client.session import Session
from edge_server.fake import FakeViewEncoder

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "tests" / "e2e" / "pictures"
FAKE = Path("fake")  # in place of a model's path: a server without a model
PATIENT = RetryPolicy(losses=20, connects=40, first_s=0.05, max_s=1.0)  # for a server that is killed again and again


class Fault(Exception):
    """A requirement that was not met during an attack."""


class Server:
    """A server process on a port of this machine; its log goes to a file."""

    def __init__(self, model: Path, log: Path) -> None:
        self.log = log
        self._model = model
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.exit_code is None

    @property
    def memory_mb(self) -> float:
        return resident_mb(self.pid)

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    @property
    def log_end(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-500:]

    def start(self, *, stderr: int | None = None) -> None:
        """Start it, again on the same port. `stderr`: a descriptor to use instead of the log file."""
        command = [sys.executable, "-m", "edge_server", "serve", "--model", str(self._model)]
        if self._model == FAKE:
            command = [sys.executable, "-m", "benchmarks.trust.fake_server"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=log if stderr is None else stderr, text=True,
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            )  # fmt: skip
        assert self.process.stdout is not None
        listening = next((line for line in self.process.stdout if line.startswith("listening on ")), None)
        if listening is None:
            self.process.communicate()
            raise Fault(f"the server ended with {self.process.returncode} before it listened; {self.log} says why")
        self.port = int(listening.rpartition(":")[2])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def stop(self, timeout_s: float = 30.0) -> int:
        """Stop it with SIGTERM; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Fault(f"the server did not end within {timeout_s:g} s of SIGTERM") from None
        return self.process.returncode


@dataclass(kw_only=True)
class Subject:
    """A model, questions about pictures, and the right answers, once `learn` was called."""

    model: Path
    folder: Path
    answers: dict[tuple[Path, str], str] = field(default_factory=dict)
    _encoders: int = 0

    def __post_init__(self) -> None:
        self.questions = list(self._questions())

    def _questions(self) -> Iterator[tuple[Path, str]]:
        if self.model == FAKE:
            for number in range(3):
                picture = self.folder / f"{number}.png"
                Image.new("RGB", (200, 160), (number * 80, 0, 0)).save(picture)
                yield from ((picture, f"what is it? {count}") for count in range(8))
        else:
            for one in json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))[:24]:
                yield PICTURES / one["image"], one["question"]

    def encoder(self) -> Encoder:
        if self.model == FAKE:
            return FakeEncoder(
                model_id="fake-model", codec_id="fake-codec", packet_bytes=50, rule=FakeViewEncoder().rule
            )
        return TowerEncoder.open(self.model)

    def session(self, port: int) -> Session:
        return Session(Target(address=f"127.0.0.1:{port}"), self.encoder(), retry=PATIENT)

    async def learn(self, port: int) -> None:
        """Ask every question once to learn the right answers."""
        async with self.session(port) as session:
            pictures = {path: session.open(path) for path, _ in self.questions}
            for path, question in self.questions:
                self.answers[path, question] = (await session.ask([pictures[path]], question).result()).answer
        if len(set(self.answers.values())) < 3:
            raise Fault(
                f"the {len(self.answers)} questions have fewer than 3 different answers, which would hide wrong ones"
            )

    def check(self, path: Path, question: str, answer: str) -> None:
        if (right := self.answers[path, question]) != answer:
            raise Fault(f"{question!r} about {path.name} was answered {answer!r}, not {right!r}")


@contextmanager
def serving(model: Path, log: Path) -> Iterator[Server]:
    server = Server(model, log)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Asker:
    """A well-behaved device: asks one question after another in one session, and checks the answers."""

    def __init__(self, subject: Subject, session: Session) -> None:
        self._subject = subject
        self._session = session
        self._pictures: dict[Path, Picture] = {}
        self.count = 0

    async def ask(self) -> float:
        """Ask one question; return the seconds until its answer was complete."""
        path, question = self._subject.questions[self.count % len(self._subject.questions)]
        self.count += 1
        if path not in self._pictures:
            self._pictures[path] = self._session.open(path)
        started = asyncio.get_running_loop().time()
        report = await self._session.ask([self._pictures[path]], question).result()
        self._subject.check(path, question, report.answer)
        return asyncio.get_running_loop().time() - started
