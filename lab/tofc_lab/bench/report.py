"""The result of a run: scores with intervals, their share of the uncompressed ones, bytes, and every answer.

Leaves asking to `run` and the definitions of scores to the sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from tofc_lab.bench.asker import Reply
from tofc_lab.bench.benchmark_set import Judged, Rules
from tofc_lab.bench.journal import fields_of
from tofc_lab.bench.question import Question, Unit
from tofc_lab.bench.scores import intervals

PACKETS, UNCOMPRESSED = "packets", "uncompressed"


def report(
    rules: Rules,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
    hashes: Sequence[Sequence[str]],
    replies: Mapping[tuple[str, str], Reply],
) -> dict[str, Any]:
    """Return the report as a JSON object. `hashes`: of each question's pictures."""
    ways = [way for way in (PACKETS, UNCOMPRESSED) if any(asked == way for asked, _ in replies)]
    judged = {
        way: [
            (question, rules.judge(question, replies[way, question.id].text), shown[0] if shown else question.id)
            for question, shown in zip(questions, hashes, strict=True)
        ]
        for way in ways
    }
    units = {way: rules.units(found) for way, found in judged.items()}
    sent = [replies[PACKETS, question.id].picture_bytes for question in questions]
    known = [one for one in sent if one is not None]
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "settings": dict(settings),
        "questions": len(questions),
        "units": len(units[PACKETS]),
        "pictures": len({one for shown in hashes for one in shown}),
        "failed": sum(replies[PACKETS, question.id].error is not None for question in questions),
        "bytes": {
            "pictures": sum(known) if known else None,
            "a question": round(sum(known) / len(questions), 2) if known else None,
        },
        **_scores(rules, units[PACKETS], units.get(UNCOMPRESSED, [])),
    }
    return found | {"answers": [_answer(at, judged, replies) for at in range(len(questions))]}


def _scores(rules: Rules, units: Sequence[Unit], reference: Sequence[Unit]) -> dict[str, Any]:
    scores, whole = rules.headline(units), rules.headline(reference) if reference else {}
    spread, shares = intervals(rules.headline, units, reference)
    return {
        "scores": scores,
        "intervals": spread,
        UNCOMPRESSED: whole or None,
        "share": {name: value / whole[name] for name, value in scores.items() if whole.get(name)},
        "share intervals": shares,
        "categories": rules.categories(units),
        "uncompressed categories": rules.categories(reference) if reference else None,
    }


def _answer(
    at: int, judged: Mapping[str, Sequence[Judged]], replies: Mapping[tuple[str, str], Reply]
) -> dict[str, Any]:
    question = judged[PACKETS][at][0]
    ways = {}
    for way, found in judged.items():
        verdict = found[at][1]
        reply = replies[way, question.id]
        ways[way] = {**fields_of(reply), "extracted": verdict.extracted, "right": verdict.right}
    return {"id": question.id, "right answer": question.answer, "category": question.category, "ways": ways}


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the report for people."""
    sent = found["bytes"]["a question"]
    shown = [
        f"{found['settings']['set']} by the rules of {found['settings']['rules']}: {found['questions']} questions, "
        f"{found['pictures']} pictures, {'bytes unknown' if sent is None else f'{sent:.1f} bytes a question'}"
    ]
    if found["failed"]:
        shown.append(f"{found['failed']} questions were refused and count as wrong; the JSON file says why")
    for name, value in found["scores"].items():
        line = f"{name} {_number(value)} ({_range(found['intervals'][name])})"
        if found[UNCOMPRESSED] is not None:
            line += f", uncompressed {_number(found[UNCOMPRESSED][name])}"
        if name in found["share"]:
            line += f", share {found['share'][name]:.3f} ({_range(found['share intervals'][name])})"
        shown.append(line)
    for kind, values in found["categories"].items():
        for name, value in values.items():
            text = (
                ", ".join(f"{key} {_number(one)}" for key, one in value.items())
                if isinstance(value, dict)
                else _number(value)
            )
            shown.append(f"  {kind} {name}: {text}")
    return shown


def _number(value: float) -> str:
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def _range(interval: Sequence[float]) -> str:
    return f"{_number(interval[0])}–{_number(interval[1])}"
