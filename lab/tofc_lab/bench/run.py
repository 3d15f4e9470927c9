"""A run of one set: read, check, ask what has no answer yet, judge, report.

    --data ─ read_table ─ SET.read ─→ questions ─ check_pictures ─→ ask ─┬─ packets ──────┐
                                                                          └─ uncompressed ─┴─ journal ─→ report

Promises that a mistake in options or files is told before the first question, and that an interrupted run keeps its
answers. Leaves the rules to the sets.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from device_client.rate import RateChoice
from tofc import json_text
from tofc.errors import UsageError
from tofc.model.feature_codecs import DEFAULT
from tofc.model.shipped import NANO
from tofc_lab.bench.asker import Asker
from tofc_lab.bench.benchmark_set import RULES, BenchmarkSet, Rules
from tofc_lab.bench.journal import Journal
from tofc_lab.bench.pictures import check_pictures, open_pictures
from tofc_lab.bench.question import Question
from tofc_lab.bench.report import PACKETS, UNCOMPRESSED, report
from tofc_lab.bench.tables import read_table

MOST_AT_ONCE = 64  # questions
SETS = ("RealWorldQA", "MME", "AI2D", "MMBench", "MMStar", "ScienceQA", "MMMU")

#: is told the name of the work, how much is done, and how much there is
Counted = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run."""

    name: str
    data: Path
    rules: str = RULES[0]
    model: Path | None = None
    """None: nano; with an endpoint: no uncompressed answers."""
    endpoint: str | None = None
    """None: both halves run in this process."""
    api_key: str | None = None
    out: Path | None = None
    split: str | None = None
    limit: int | None = None
    """Questions; those that are scored together with one of them are asked too."""
    parallel: int = 8
    uncompressed: bool = True
    preset: str | None = None
    feature_codec: str = DEFAULT
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.rules not in RULES:
            raise UsageError(f"--rules must be {' or '.join(RULES)}, got {self.rules}")
        for option, value in (("--limit", self.limit), ("--parallel", self.parallel)):
            if value is not None and value < 1:
                raise UsageError(f"{option} must be 1 or more, got {value}")
        if self.parallel > MOST_AT_ONCE:
            raise UsageError(f"--parallel must be at most {MOST_AT_ONCE}, got {self.parallel}")
        if self.endpoint is not None and (self.preset is not None or self.feature_codec != DEFAULT):
            raise UsageError("--preset and --feature-codec are the endpoint's own options; leave them out")


def find_set(name: str) -> BenchmarkSet:
    """Return a set by its name, in any case. Raises UsageError, which lists the seven."""
    for known in SETS:
        if known.lower() == name.lower():
            found: BenchmarkSet = import_module(f"tofc_lab.bench.sets.{known.lower()}").SET
            return found
    raise UsageError(f"SET must be one of {', '.join(SETS)}, got {name}")


def run(job: Job, counted: Counted = lambda *_: None) -> dict[str, Any]:
    """Return the report, after writing it to `job.out`.

    Raises UsageError for options and files, Error where asking on makes no sense, ImportError without pyarrow.
    """
    chosen = find_set(job.name)
    rules = chosen.rules[job.rules]
    questions = limited(unique(chosen.read(read_table(job.data, chosen.split, job.split)), job.data), job.limit)
    for question in questions:
        _check_places(rules, question)
    hashes = check_pictures(questions)
    return asyncio.run(_run(job, chosen, rules, questions, hashes, counted))


async def _run(
    job: Job,
    chosen: BenchmarkSet,
    rules: Rules,
    questions: Sequence[Question],
    hashes: Sequence[Sequence[str]],
    counted: Counted,
) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        askers, model = await _askers(job, stack)
        settings = {
            "set": chosen.name,
            "rules": job.rules,
            "questions": len(questions),
            "data": fingerprint(questions, hashes),
            **model,
        }
        with Journal(job.out, settings) as journal:
            for way, asker in askers.items():
                await _ask(way, asker, rules, questions, journal, job.parallel, counted)
            found = report(rules, settings, questions, hashes, journal.replies)
            if job.out is not None:
                partial = job.out.with_name(job.out.name + ".new")
                json_text.write(partial, found)
                partial.replace(job.out)
            journal.finish()
        return found


async def _askers(job: Job, stack: AsyncExitStack) -> tuple[dict[str, Asker], dict[str, Any]]:
    """Return what answers, by way, and what it is."""
    askers: dict[str, Asker] = {}
    settings: dict[str, Any] = {}
    if job.endpoint is not None:
        from tofc_lab.bench.endpoint import EndpointAsker

        endpoint = await stack.enter_async_context(EndpointAsker(job.endpoint, job.api_key))
        settings["endpoint's model"] = await endpoint.model()
        askers[PACKETS] = endpoint
    whole = job.uncompressed and (job.endpoint is None or job.model is not None)
    if job.endpoint is None or whole:
        from tofc_lab.bench.local_edge import LocalEdge

        edge = LocalEdge(job.model or NANO, RateChoice(preset=job.preset), job.feature_codec, job.device, job.parallel)
        settings["model_id"] = edge.encoder.model_id
        await stack.enter_async_context(edge)
        if job.endpoint is None:
            settings |= {"codec_id": edge.encoder.codec_id, "setting": edge.encoder.setting}
            askers[PACKETS] = edge.packets()
        if whole:
            askers[UNCOMPRESSED] = edge.uncompressed()
    return askers, settings


async def _ask(
    way: str,
    asker: Asker,
    rules: Rules,
    questions: Sequence[Question],
    journal: Journal,
    parallel: int,
    counted: Counted,
) -> None:
    """Ask what has no answer yet, in order, `parallel` questions at a time."""
    missing = iter([question for question in questions if (way, question.id) not in journal.replies])
    done = sum((way, question.id) in journal.replies for question in questions)
    counted(way, done, len(questions))

    async def work() -> None:
        nonlocal done
        for question in missing:
            pictures = await asyncio.to_thread(open_pictures, question)
            journal.add(way, question.id, await asker.ask(rules.prompt(question), pictures, rules.max_tokens))
            done += 1
            counted(way, done, len(questions))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(work())
    except ExceptionGroup as errors:
        first: Exception = errors
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def unique(questions: list[Question], data: Path) -> list[Question]:
    """Return the questions. Raises UsageError for two with one id."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UsageError(
                f"{data} has the question {question.id} twice; name the folder of one language or version of the set"
            )
        seen.add(question.id)
    return questions


def limited(questions: list[Question], most: int | None) -> list[Question]:
    """Return the first questions, and those that are scored together with one of them."""
    if most is None:
        return questions
    groups = {question.group for question in questions[:most]} - {None}
    return [question for at, question in enumerate(questions) if at < most or question.group in groups]


def _check_places(rules: Rules, question: Question) -> None:
    for part in rules.prompt(question):
        if isinstance(part, int) and not 0 <= part < len(question.pictures):
            raise UsageError(
                f"question {question.id} names its picture {part + 1}, but it has {len(question.pictures)}; its "
                "columns of pictures may be incomplete"
            )


def fingerprint(questions: Sequence[Question], hashes: Sequence[Sequence[str]]) -> str:
    """Return twelve hexadecimal digits that change with every text and picture."""
    digest = hashlib.sha256()
    for question, shown in zip(questions, hashes, strict=True):
        told = (question.id, question.text, question.whole, dict(question.options), question.answer, question.hint)
        digest.update(repr((told, list(shown))).encode(errors="surrogatepass"))
    return digest.hexdigest()[:12]
