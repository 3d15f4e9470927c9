"""The settings that a training was started with, kept beside its checkpoint.

Promises that resuming a run with other settings is an error before features and answers are computed, which takes
hours. Leaves the exact test to `tofc_lab.resume`, which later compares all that a checkpoint depends on, answers too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tofc import json_text
from tofc.errors import UsageError
from tofc_lab.resume import differences

SUFFIX = ".settings.json"

CHECKPOINT, INDEX_CHECKPOINT = "codec.ckpt", "index.ckpt"


def check(checkpoint: Path, given: Mapping[str, Any], questions: Mapping[str, Sequence[str]]) -> None:
    """Raise `UsageError` if there is a checkpoint with other settings, pictures or questions (by picture's digest)."""
    file = checkpoint.with_suffix(SUFFIX)
    if not checkpoint.exists() or not file.exists():
        return
    kept = json_text.read(file)
    differ = differences(kept["settings"], given)
    missing = kept["pictures"].keys() - questions.keys()
    added = questions.keys() - kept["pictures"].keys() - set(kept["left out"])
    others = [
        one
        for one, digest in kept["pictures"].items()
        if digest and one in questions and digest != _digest(questions[one])
    ]
    for some, what in ((missing, "are missing"), (added, "are new"), (others, "have other questions")):
        if some:
            differ.append(f"pictures that {what}: {len(some)}")
    if differ:
        raise UsageError(
            f"the training in {checkpoint.parent} was started with other settings: {'; '.join(differ)}. Give the same "
            f"again, name another --run, or remove {checkpoint} to start again"
        )


def save(
    checkpoint: Path,
    given: Mapping[str, Any],
    questions: Mapping[str, Sequence[str]],
    training: set[str],
    held_out: set[str],
) -> None:
    """Write the settings, unless there is a checkpoint already. Both sets are digests of pictures."""
    if checkpoint.exists():
        return
    # The questions about held-out pictures do not affect the training.
    pictures = {one: _digest(questions[one]) for one in training} | dict.fromkeys(held_out, "")
    left_out = sorted(questions.keys() - pictures.keys())
    json_text.write(checkpoint.with_suffix(SUFFIX), {"settings": given, "pictures": pictures, "left out": left_out})


def _digest(asked: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(asked)).encode()).hexdigest()[:12]
