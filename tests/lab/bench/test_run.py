"""Nano answers each of the seven sets through a real device and a real server, in this process and over an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.e2e.conftest import ServerThread
from tests.endpoint.conftest import EndpointThread
from tests.lab.bench.made_up import FORMS, SETS, rows, write
from tofc.errors import UsageError
from tofc_lab.bench import run as running
from tofc_lab.bench.benchmark_set import RULES
from tofc_lab.bench.journal import Journal
from tofc_lab.bench.report import PACKETS, UNCOMPRESSED, lines
from tofc_lab.bench.run import Job, run
from tofc_lab.cli import app

#: where words are right answers to some questions; elsewhere only letters are, which nano has not learnt
WORDS_COUNT = {("RealWorldQA", "lmms-eval"), ("MMMU", "vlmevalkit")}
FEW = 6


@pytest.fixture(scope="module")
def endpoint() -> Iterator[EndpointThread]:
    edge = ServerThread()
    made = EndpointThread(edge.address)
    yield made
    made.stop()
    edge.stop()


@pytest.mark.parametrize(("form", "rules"), list(zip(FORMS, RULES, strict=True)))
@pytest.mark.parametrize("name", SETS)
def test_an_endpoint_gives_the_same_answers(
    name: str, form: str, rules: str, tmp_path: Path, endpoint: EndpointThread
) -> None:
    data = write(tmp_path, name, form)
    here = run(Job(name=name, data=data, rules=rules, limit=FEW, uncompressed=False))
    there = run(Job(name=name, data=data, rules=rules, limit=FEW, endpoint=endpoint.url))
    answers = [[one["ways"][PACKETS]["answer"] for one in found["answers"]] for found in (here, there)]
    assert answers[0] == answers[1] and any(answers[0])
    for part in ("scores", "categories", "intervals", "failed", "units"):
        assert here[part] == there[part]
    assert here["failed"] == 0 and here["bytes"]["pictures"] > 0
    assert here["scores"].keys() == here["intervals"].keys()
    if (name, rules) in WORDS_COUNT:
        assert here["scores"]["accuracy"] > 0


def test_packets_lose_little_of_the_uncompressed_score(tmp_path: Path) -> None:
    data = write(tmp_path, "RealWorldQA", "tsv")
    records = rows("RealWorldQA", "tsv", most=72)
    for number, record in enumerate(records):  # open questions, which nano answers
        record["index"] = number
        record["answer"] = record["ABC"["ABC".index(record["answer"])]]
        for letter in "ABCD":
            record[letter] = None
    data = write(tmp_path / "open", "RealWorldQA", "tsv", records)
    found = run(Job(name="RealWorldQA", data=data))
    assert found["scores"]["accuracy"] == pytest.approx(68 / 72)  # as benchmarks.question_order counts
    assert found[UNCOMPRESSED]["accuracy"] >= 68 / 72
    assert 0.9 < found["share"]["accuracy"] <= 1.05
    low, high = found["intervals"]["accuracy"]
    assert low < found["scores"]["accuracy"] < high
    assert found["pictures"] == 12 and 12 * 5 < found["bytes"]["pictures"] < 12 * 40
    assert "72 questions, 12 pictures" in lines(found)[0] and "share" in lines(found)[1]


def test_an_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write(tmp_path, "MME", "tsv"), tmp_path / "out.json"
    job = Job(name="MME", data=data, limit=4, out=out, parallel=1, uncompressed=False)
    add = Journal.add
    asked: list[str] = []

    def interrupted(self: Journal, way: str, question: str, reply: Any) -> None:
        if len(asked) == 2:
            (task,) = [one for one in asyncio.all_tasks() if "bench/run.py" in str(one) and "_run()" in str(one)]
            task.cancel()  # what asyncio does on Ctrl-C
            return
        asked.append(question)
        add(self, way, question, reply)

    monkeypatch.setattr(Journal, "add", interrupted)
    with pytest.raises(asyncio.CancelledError):
        run(job)
    part = tmp_path / "out.json.part"
    assert not out.exists() and len(part.read_text().splitlines()) == 3
    part.write_text(part.read_text() + '{"way": "packets", "id": "2", "ans')  # cut off by a power failure
    monkeypatch.setattr(Journal, "add", lambda self, *given: (asked.append(given[1]), add(self, *given))[0])
    found = run(job)
    assert asked == [one["id"] for one in found["answers"]] and len(asked) == 4
    assert not part.exists() and json.loads(out.read_text()) == json.loads(json.dumps(found))
    whole = run(Job(name="MME", data=data, limit=4, uncompressed=False))
    assert found["scores"] == whole["scores"]
    asked.clear()
    assert run(job)["answers"] == found["answers"] and asked == []  # nothing is asked again
    with pytest.raises(UsageError, match="answers of another run: rules was lmms-eval, is vlmevalkit"):
        run(Job(name="MME", data=data, limit=4, out=out, rules="vlmevalkit", uncompressed=False))


def test_a_question_that_is_refused_counts_as_wrong_with_its_reason(tmp_path: Path, endpoint: EndpointThread) -> None:
    records = rows("RealWorldQA", "tsv")[:2]
    records[1]["question"] = "what is this? " * 3000
    data = write(tmp_path, "RealWorldQA", "tsv", records)
    for more in ({"uncompressed": False}, {"endpoint": endpoint.url}):
        found = run(Job(name="RealWorldQA", data=data, **more))
        first, second = (one["ways"][PACKETS] for one in found["answers"])
        assert found["failed"] == 1 and "error" not in first
        assert not second["right"] and "question" in second["error"]


def test_the_command_prints_scores_and_names_mistakes(tmp_path: Path) -> None:
    data = write(tmp_path, "MMBench", "tsv")
    bench = ["bench", "MMBench", "--data", str(data)]
    done = CliRunner().invoke(app, [*bench, "--limit", "3", "--no-uncompressed", "--json", str(tmp_path / "o.json")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("MMBench by the rules of lmms-eval: 5 questions, 1 pictures, ")  # whole circles
    assert len(json.loads((tmp_path / "o.json").read_text())["answers"]) == 5
    for wrong, message in (
        (["bench", "VQAv2", "--data", str(data)], "SET must be one of RealWorldQA, MME, "),
        (["bench", "MME", "--data", str(tmp_path / "absent")], "does not exist"),
        (["bench", "MME", "--data", str(data)], "lacks the column image_path"),
        (
            [*bench, "--rules", "mine"],
            "--rules must be lmms-eval or vlmevalkit, got mine",
        ),
        ([*bench, "--limit", "0"], "--limit must be 1 or more, got 0"),
        ([*bench, "--endpoint", "ftp://x"], "--endpoint must be like http://"),
        ([*bench, "--endpoint", "http://127.0.0.1:9/v1"], "does not answer"),
        ([*bench, "--preset", "huge"], "huge"),
    ):
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2 and message in done.stderr, (wrong, done.stderr)


def test_the_seven_sets_are_those_that_are_made_up() -> None:
    assert running.SETS == SETS
