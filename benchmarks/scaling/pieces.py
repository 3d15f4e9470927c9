"""What one picture, question, token and session cost: measured here, or assumed, and from where.

Promises that a number is in one place, with its source, and that the measured ones are read from
`benchmarks/results/`. Leaves what follows from them to `arithmetic` and `simulation`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROW_BYTES = 4096 * 2 * 4 / 3  # of a prompt on the way to an engine: H numbers in bfloat16, in base64
ROW_MEMORY_BYTES = 4096 * 4  # of a feature on the edge server: H numbers in float32
ASSUMED = "assumed"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A number, its unit, and where it comes from: a command that measures it, or `ASSUMED` and why."""

    value: float
    unit: str
    what: str
    source: str

    @property
    def measured(self) -> bool:
        """Whether this project measured it."""
        return not self.source.startswith(ASSUMED)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The costs, at the released model's shapes where they depend on the model."""

    question_every_s: Piece
    questions_a_picture: Piece
    views: Piece
    features_a_view: Piece
    text_rows: Piece
    answer_tokens: Piece
    picture_bytes: Piece
    question_bytes: Piece
    answer_bytes: Piece
    decode_s: Piece
    assemble_s: Piece
    question_cpu_s: Piece
    token_cpu_s: Piece
    session_bytes: Piece
    link_bytes_a_s: Piece
    round_trip_s: Piece
    engine_places: Piece
    step_s: Piece
    step_token_s: Piece
    prefill_row_s: Piece

    @property
    def rows(self) -> float:
        """Rows of a prompt: the picture's features, then text."""
        return self.views.value * self.features_a_view.value + self.text_rows.value

    def __iter__(self) -> Any:
        return ((field.name, getattr(self, field.name)) for field in fields(self))


def read(results: Path = RESULTS) -> Pieces:
    """Return the pieces, the measured ones from the results of the benchmarks."""

    def load(name: str) -> Any:
        return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))

    codec = load("codec_speed")["the released model's shapes"]["index"]["16 features a view"]
    asked = load("end_to_end")
    observed = load("observed")
    again, first = asked["another question about it"], asked["first question about a picture of several views"]
    codec_from, bytes_from = "python -m benchmarks.codec_speed", "python -m benchmarks.end_to_end"
    framing = first["bytes_up"] - first["bytes_picture"]
    return Pieces(
        question_every_s=_assumed(60, "s", "a device asks every", "a person, or a camera that is asked each minute"),
        questions_a_picture=_assumed(3, "", "questions about a picture", "a person"),
        views=_measured(9, "", "views of a picture", "the model's view rule at 1920 × 1080"),
        features_a_view=_assumed(16, "", "features kept of a view", "a preset"),
        text_rows=_assumed(40, "rows", "a prompt's text", "a question and the chat template"),
        answer_tokens=_assumed(64, "tokens", "an answer", "two sentences"),
        picture_bytes=_measured(codec["bytes a view"] * 9, "B", "a picture's packets", codec_from),
        question_bytes=_measured(
            again["bytes_up"] + framing / 3, "B", "a question on the socket, its share of framing a picture", bytes_from
        ),
        answer_bytes=_measured(
            again["bytes_down"] + 63 * 24, "B", "an answer on the socket", f"{bytes_from}; 24 B a further token"
        ),
        decode_s=_measured(codec["ms"]["decode, 9 views"] / 1e3, "s", "CPU to decode a picture", codec_from),
        assemble_s=_assumed(
            0.007, "s", "CPU to write a prompt's rows for an engine", "half of 70 ms for 1 000 rows, tried 2026-11-29"
        ),
        question_cpu_s=_measured(
            observed["tokens"]["server_cpu_ms_per_question"] / 1e3,
            "s",
            "CPU of a question",
            "python -m benchmarks.observed",
        ),
        token_cpu_s=_measured(
            observed["tokens"]["server_cpu_ms_per_token"] / 1e3, "s", "CPU of a token", "python -m benchmarks.observed"
        ),
        session_bytes=_measured(
            observed["idle"]["mb_more"] * 1e6 / observed["idle"]["sessions"],
            "B",
            "memory of an idle session",
            "python -m benchmarks.observed",
        ),
        link_bytes_a_s=_assumed(50_000, "B/s", "a device's link", "a narrow one"),
        round_trip_s=_assumed(0.05, "s", "round trip between device and edge server", "mobile network"),
        engine_places=_assumed(64, "", "answers that an engine computes at once", "vLLM's --max-num-seqs here"),
        step_s=_assumed(
            0.007, "s", "a step of an engine, however many answers", "20 GB of weights at 60 % of 4.8 TB/s, an H200"
        ),
        step_token_s=_assumed(0.00005, "s", "more of a step for each answer", "keys and values of 200 to 1 000 rows"),
        prefill_row_s=_assumed(0.00005, "s", "prefill of a row", "20 GFLOP at 40 % of 989 TFLOP/s"),
    )


def _measured(value: float, unit: str, what: str, source: str) -> Piece:
    return Piece(value=value, unit=unit, what=what, source=source)


def _assumed(value: float, unit: str, what: str, why: str) -> Piece:
    return Piece(value=value, unit=unit, what=what, source=f"{ASSUMED}: {why}")
