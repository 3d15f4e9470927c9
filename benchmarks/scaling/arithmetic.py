"""What a number of devices needs on average; everything but the models is proportional to it.

Promises no statement about waiting, which averages hide. Leaves that to `simulation`.
"""

from __future__ import annotations

from benchmarks.scaling.pieces import ROW_BYTES, ROW_MEMORY_BYTES, Pieces

EDGE_THREADS = 2  # of an edge server that decode and assemble (--threads); its event loop takes one more core


def needs(pieces: Pieces, devices: int) -> dict[str, float]:
    """Return what `devices` need, by name with its unit."""
    questions = devices / pieces.question_every_s.value  # a second
    pictures = questions / pieces.questions_a_picture.value
    tokens = questions * pieces.answer_tokens.value
    step_s = pieces.step_s.value + pieces.engine_places.value * pieces.step_token_s.value
    engine_s = (
        pieces.answer_tokens.value * step_s / pieces.engine_places.value + pieces.rows * pieces.prefill_row_s.value
    )
    loop = questions * pieces.question_cpu_s.value + tokens * pieces.token_cpu_s.value
    return {
        "questions/s": questions,
        "kB/s up": (pictures * pieces.picture_bytes.value + questions * pieces.question_bytes.value) / 1e3,
        "kB/s down": questions * pieces.answer_bytes.value / 1e3,
        "cores that decode": pictures * pieces.decode_s.value,
        "cores that write prompts": questions * pieces.assemble_s.value,
        "cores of event loops": loop,
        "MB of sessions": devices * pieces.session_bytes.value / 1e6,
        "GB of pictures held": devices * pieces.views.value * pieces.features_a_view.value * ROW_MEMORY_BYTES / 1e9,
        "Gbit/s to engines": questions * pieces.rows * ROW_BYTES * 8 / 1e9,
        "tokens/s": tokens,
        "engines": questions * engine_s,
    }
