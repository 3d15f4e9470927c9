"""PaCoRe and the vote with the shipped model: the real device, the real server, over 127.0.0.1."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

import tofc
from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.reasoning import Reasoning
from device_client.session import Session
from tests.e2e.conftest import PICTURES, ROOT, ServerThread

PICTURE = PICTURES / "picture-08.jpg"
QUESTION = "Which object is closest to the right?"  # nano is not sure: its samples differ


async def test_a_question_from_samples_sends_the_picture_once(
    server: ServerThread, encoder: TowerEncoder, tmp_path: Path
) -> None:
    with Image.open(PICTURE) as image:  # one that no other test has sent to this server
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    async with Session(Target(address=server.address), encoder) as session:
        picture = session.open(tmp_path / "mirrored.png")
        reasoning = Reasoning(pacore="high", rollouts=True)
        report = await session.ask([picture], QUESTION, reasoning=reasoning).result()
        assert report.answer and report.rollouts is not None and report.views_sent == 1
        assert Counter(one["round"] for one in report.rollouts) == {1: 32, 2: 4}
        used = sum(one["finish_reason"] == "stop" and bool(one["text"].strip()) for one in report.rollouts)
        assert (report.usage["samples"], report.usage["samples_used"]) == (36, used)
        assert report.usage["new_tokens"] > sum(one["new_tokens"] for one in report.rollouts) >= 36
        assert len({one["text"] for one in report.rollouts if one["round"] == 1}) > 1, "samples differ"
        vote = await session.ask([picture], QUESTION, reasoning=Reasoning(vote=9, rollouts=True)).result()
        assert vote.bytes_picture == 0 and vote.votes and vote.rollouts
        texts = Counter(one["text"] for one in vote.rollouts if one["finish_reason"] == "stop")
        assert vote.answer == vote.votes[0]["text"] and vote.votes[0]["count"] == max(texts.values())


def test_the_command_gives_votes_and_rollouts_as_json(server: ServerThread) -> None:
    for options in (["--vote", "5"], ["--pacore", "low"]):
        arguments = ["--server", server.address, "--json", "--rollouts", "--seed", "7", *options]
        done = subprocess.run(
            [sys.executable, "-m", "device_client", "ask", str(PICTURE), QUESTION, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        found = json.loads(done.stdout)
        assert len(found["rollouts"]) == found["usage"]["samples"] == (5 if "--vote" in options else 4)
        assert ("votes" in found) is ("--vote" in options) and found["answer"]


def test_the_same_seed_gives_the_same_answer_in_python(server: ServerThread) -> None:
    with tofc.Client(server.address) as edge:
        picture = edge.picture(PICTURE)
        first, again = (picture.ask(QUESTION, vote=6, seed=3, rollouts=True) for _ in range(2))
        assert first.rollouts == again.rollouts and first.votes == again.votes and first.text in first.votes
        assert sum(first.votes.values()) == first.usage.samples_used <= first.usage.samples == 6
        answer = picture.ask(QUESTION, pacore=3, token_budget=1000)
        assert answer.usage.samples == 3 and answer.votes == {} and answer.rollouts == ()
