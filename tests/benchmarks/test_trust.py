"""The robustness benchmark: a short run passes, and faults are detected."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.relay import Relay
from benchmarks.trust import once, soak
from benchmarks.trust.__main__ import SHORT, parts
from benchmarks.trust.attacks import ATTACKS
from benchmarks.trust.beside import p95
from benchmarks.trust.dead_link import dead_link
from benchmarks.trust.subject import FAKE, Fault, Server, Subject, serving
from tofc.rpc.channel import Keepalive

ROOT = Path(__file__).resolve().parents[2]
HANGS_S = 20.0


def trust(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.trust", "--model", FAKE, *arguments]
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_short_run_holds(tmp_path: Path) -> None:
    out = tmp_path / "trust.json"
    done = trust("--short", "--out", out)
    assert done.returncode == 0, done.stderr
    measured = json.loads(out.read_text())["measured"]
    assert measured == json.loads(done.stdout)
    assert measured.keys() == parts(SHORT, 0).keys() >= ATTACKS.keys() - {"hpack_bombs_of_many"}
    for name in measured.keys() & ATTACKS.keys():
        one = measured[name]
        assert one["answers_beside"] > 0 and sum(one["attack"].values()) > 3, name
    assert measured["unread_answers"]["attack"]["sessions"] >= 40
    assert (measured["kills"]["kills"], measured["cuts"]["cuts"]) == (2, 10)
    again = trust("--short", "--out", out, "--only", "garbage")
    assert again.returncode == 0 and json.loads(out.read_text())["measured"].keys() == measured.keys()


def test_an_unknown_part_is_refused() -> None:
    done = trust("--only", "ping")
    assert done.returncode == 2 and "--only must be one of undecodable_paths, " in done.stderr


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(model=FAKE, folder=tmp_path)


async def test_wrong_lost_and_repeated_answers_are_detected(subject: Subject) -> None:
    subject.answers = {asked: str(number) for number, asked in enumerate(subject.questions)}
    asked = once.Batch(subject, "some", 3)
    right = [{"id": number, "answer": str(number)} for number in range(3)]

    def faults(rows: list[dict[str, object]]) -> list[str]:
        (subject.folder / "some.out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return asked.faults()

    assert faults(right) == []
    assert "2 answers to 3 questions" in faults(right[:2])[0]
    assert "4 answers to 3 questions" in faults([*right, right[2]])[0]
    assert "not in their order" in faults([right[0], right[0], right[2]])[0]
    assert "was answered 'x', not '1'" in faults([right[0], {"id": 1, "answer": "x"}, right[2]])[0]
    assert faults([right[0], {"id": 1, "error": "why"}, right[2]]) == ["line 1 failed: why"]


async def test_a_server_that_always_answers_the_same_is_refused(subject: Subject, tmp_path: Path) -> None:
    subject.questions = subject.questions[:1] * 4
    with serving(FAKE, tmp_path / "log") as server, pytest.raises(Fault, match="would hide wrong ones"):
        await subject.learn(server.port)


def test_a_server_that_does_not_start_says_where_to_look(tmp_path: Path) -> None:
    server = Server(tmp_path / "nothing", tmp_path / "log")
    with pytest.raises(Fault, match=r"the server ended with [12] before it listened; .*log says why"):
        server.start()
    assert server.log.read_text()


async def test_the_relay_cuts_after_the_given_numbers_of_bytes() -> None:
    ends: list[asyncio.Future[None]] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(asyncio.get_running_loop().create_future())
        with suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()
        ends[-1].set_result(None)

    there = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with there, Relay(there.sockets[0].getsockname()[1], cuts=[30, 10]) as relay, asyncio.timeout(HANGS_S):
        for cut, sent, received in ((1, 20, 10), (2, 10, 0)):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            writer.write(b"x" * sent)
            echoed = b""
            with suppress(ConnectionError):
                while data := await reader.read(100):
                    echoed += data
            assert len(echoed) <= received and relay.cut == cut
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"x" * 500)
        assert await reader.readexactly(500)
        writer.close()
        assert relay.links == 3
    await asyncio.gather(*ends)


async def test_both_sides_detect_a_dead_link() -> None:
    keepalive = Keepalive(client_interval_ms=500, server_interval_ms=500, timeout_ms=500, min_interval_ms=100)
    assert (await dead_link(keepalive, longest_s=HANGS_S))["faults"] == []


def test_the_95th_percentile_ignores_the_slowest_of_twenty() -> None:
    assert p95([*map(float, range(19)), 1e9]) == 18


def test_growing_memory_is_detected() -> None:
    flat = [(5.0 * count, 100.0 + count % 2, 200.0) for count in range(60)]
    assert soak.summary(flat)["faults"] == []
    grows = [(at, server, device + at) for at, server, device in flat]
    found = soak.summary(grows)
    assert found["device_mb_an_hour"] == pytest.approx(3600) and len(found["faults"]) == 1
    assert "the device's memory grew from" in found["faults"][0]
    assert "memory samples are too few" in soak.summary(flat[:3])["faults"][0]
