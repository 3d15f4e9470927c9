"""A model judged on real photographs: all questions through both halves of the project, as a person would ask them.

Promises that each photograph goes through the checkpoint's tower, codec and decoder (`Client(":local:")`), and that
photographs which were not fetched are left out and counted. Leaves drawing the misses to `judge_sheet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tofc import Checkpoint, Client
from tofc.errors import UsageError
from tofc_lab.photo.judge_pictures import SIDE, open_photograph
from tofc_lab.photo.judge_questions import KINDS, JudgeQuestion, Verdict, load
from tofc_lab.progress import NamedProgress

FILE_QUALITY = 95  # of JPEG files that are sent instead of packets
LARGE = 0.2  # share of the picture from which a thing counts as large
LARGE_ROW = "is there, a fifth or more"
_Z = 1.959964  # of a normal distribution, two-sided 95 %


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A question, the model's answer to it, and what the answer is worth."""

    question: JudgeQuestion
    answer: str
    verdict: Verdict

    @property
    def right(self) -> bool:
        """Whether the answer is exact, a synonym or a right hypernym."""
        return self.verdict in ("exact", "accepted")


def judge(
    model: Path,
    folder: Path | None,
    *,
    progress: NamedProgress,
    preset: str | None = None,
    feature_codec: str | None = None,
    as_files: bool = False,
    side: int = SIDE,
    only: Iterable[str] | None = None,
) -> tuple[dict[str, Any], list[Judged]]:
    """Ask `model` all questions and return the report (as JSON has it) and each answer.

    Args:
        model: folder of a whole checkpoint.
        folder: where `judge_pictures.fetch` put the photographs; None: only those that ship.
        progress: shows how many photographs are done.
        preset: how precisely a photograph is sent; None: the model's default.
        feature_codec: which of the model's codecs makes the packets; None: its default one.
        as_files: send JPEG files of quality 95 instead of packets, so that no codec of features loses anything.
        side: the long side of a photograph in px.
        only: names of photographs to ask about; None: all.

    Raises `UsageError` for a name that no photograph has, and what `tofc.Client` raises.
    """
    photographs, questions = load()
    names = list(photographs) if only is None else list(only)
    if unknown := [name for name in names if name not in photographs]:
        raise UsageError(f"no photograph is named {unknown[0]!r}; there are {', '.join(photographs)}")
    model_id = Checkpoint.open(model).model_id  # a wrong model is refused before anything is opened
    judged: list[Judged] = []
    sent, missing = [], 0
    sending: dict[str, Any] = {"preset": preset, "feature_codec": feature_codec}
    if as_files:
        sending |= {"mode": "image", "quality": FILE_QUALITY}
    with Client(":local:", model=model, **sending) as edge:
        for name in progress(names, len(names), "photographs"):
            image = open_photograph(photographs[name], folder, side)
            if image is None:
                missing += 1
                continue
            picture, sent_bytes = edge.picture(image), 0
            for question in (one for one in questions if one.picture == name):
                answer = picture.ask(question.ask)
                sent_bytes += answer.usage.bytes_picture
                judged.append(Judged(question=question, answer=answer.text, verdict=question.verdict(answer.text)))
            sent.append(sent_bytes)
    report: dict[str, Any] = {
        "command": " ".join(["tofc-lab photo judge --model", str(model), *_options(preset, feature_codec, as_files)]),
        "date": date.today().isoformat(),
        "model_id": model_id,
        "photographs": len(sent),
        "photographs_missing": missing,
        "side_px": side,
        "bytes_picture": round(sum(sent) / max(len(sent), 1), 1),
        "results": results(judged),
        "answers": {name: {} for name in names},
    }
    for one in judged:
        report["answers"][one.question.picture][one.question.ask] = one.answer
    return report, judged


def _options(preset: str | None, feature_codec: str | None, as_files: bool) -> list[str]:
    named = {"--preset": preset, "--feature-codec": feature_codec}
    return [f"{name} {value}" for name, value in named.items() if value] + ["--as-files"] * as_files


def judged_again(report: dict[str, Any]) -> list[Judged]:
    """Return the answers of a report, judged by the questions as they are now; the model is not asked.

    Raises `UsageError` if the report has no answers. Questions that it has no answer to are left out.
    """
    answers = report.get("answers")
    if not isinstance(answers, dict):
        raise UsageError("a report of `tofc-lab photo judge --json` must have 'answers'")
    return [
        Judged(question=one, answer=answers[one.picture][one.ask], verdict=one.verdict(answers[one.picture][one.ask]))
        for one in load()[1]
        if one.ask in answers.get(one.picture, {})
    ]


def results(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Return a row for each kind of question, one for large things that are there or not, and one for all."""
    large = {one.question.picture for one in judged if (one.question.share or 0) >= LARGE}
    rows: dict[str, list[Judged]] = {kind: [one for one in judged if one.question.kind == kind] for kind in KINDS}
    rows[LARGE_ROW] = [  # and, so that yes alone is not rewarded, what is not there on the same photographs
        one
        for one in rows["is there"]
        if (one.question.share or 0) >= LARGE or (one.question.share is None and one.question.picture in large)
    ]
    rows["all"] = list(judged)
    return {name: _row(found) for name, found in rows.items() if found}


def _row(found: Sequence[Judged]) -> dict[str, Any]:
    asked, exact = len(found), sum(one.verdict == "exact" for one in found)
    right, answered = sum(one.right for one in found), sum(one.verdict != "not sure" for one in found)
    return {
        "questions": asked,
        "exact": _share(exact, asked),
        "exact_interval": wilson(exact, asked),
        "accepted": _share(right, asked),
        "accepted_interval": wilson(right, asked),
        "not_sure": _share(asked - answered, asked),
        "right_where_it_answers": _share(right, answered),
    }


def _share(count: int, of: int) -> float | None:
    return round(count / of, 4) if of else None


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's formula, which also holds for few questions and for 0 % right.

    >>> wilson(0, 18), wilson(9, 18)
    ((0.0, 0.1759), (0.2903, 0.7097))
    """
    share, extra = right / asked, _Z**2 / asked
    middle = (share + extra / 2) / (1 + extra)
    half = _Z * math.sqrt(share * (1 - share) / asked + extra / (4 * asked)) / (1 + extra)
    return round(max(middle - half, 0.0), 4), round(min(middle + half, 1.0), 4)


def table(report: dict[str, Any]) -> str:
    """Return the results as a Markdown table: shares in percent, with their 95 % intervals."""
    lines = [
        "| questions | asked | exact | with synonyms and hypernyms | not sure | right where it answers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in report["results"].items():
        cells = [_percent(row["exact"], row["exact_interval"]), _percent(row["accepted"], row["accepted_interval"])]
        cells += [_percent(row["not_sure"]), _percent(row["right_where_it_answers"])]
        lines.append(f"| {name} | {row['questions']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def misses(judged: Sequence[Judged]) -> list[str]:
    """Return a Markdown list of the questions without a right answer."""
    return [
        f"- {one.question.picture}: {one.question.ask} {one.answer!r}, wanted {' or '.join(one.question.answers)}"
        for one in judged
        if not one.right
    ]


def _percent(share: float | None, interval: tuple[float, float] | None = None) -> str:
    if share is None:
        return "–"
    return f"{share:.0%}" + (f" ({interval[0]:.0%}–{interval[1]:.0%})" if interval else "")
