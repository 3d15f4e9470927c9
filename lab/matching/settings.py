"""The settings that a training was begun with, kept beside its checkpoint.

Promises that a run which is resumed with others hears of it before features and answers are computed, which takes
hours. What a checkpoint really stands on, answers included, is checked by `lab.resume` when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import json_text

CHECKPOINT, SETTINGS = "codec.ckpt", "codec.settings.json"


def check(run: Path, given: Mapping[str, Any], ask: Mapping[str, Sequence[str]]) -> None:
    """Raises ``ValueError`` where ``run`` has a checkpoint of other settings, pictures or questions (by digest)."""
    file = run / SETTINGS
    if not (run / CHECKPOINT).exists() or not file.exists():
        return
    kept = json_text.read(file)
    then, now = kept["settings"], json.loads(json.dumps(given))
    differ = [f"{name} was {then.get(name)}, is {now.get(name)}" for name in now if then.get(name) != now[name]]
    lacking = kept["pictures"].keys() - ask.keys()
    added = ask.keys() - kept["pictures"].keys() - set(kept["left out"])
    others = [one for one, digest in kept["pictures"].items() if digest and one in ask and digest != _digest(ask[one])]
    for some, what in ((lacking, "are missing"), (added, "are new"), (others, "have other questions")):
        if some:
            differ.append(f"pictures that {what}: {len(some)}")
    if differ:
        raise ValueError(
            f"the training in {run} was begun with other settings: {'; '.join(differ)}. Give the same again, name "
            f"another --run, or remove {run / CHECKPOINT} to train anew"
        )


def save(
    run: Path, given: Mapping[str, Any], ask: Mapping[str, Sequence[str]], training: set[str], held_out: set[str]
) -> None:
    """Note what a training begins with; what a checkpoint was begun with stays. All sets are of digests."""
    if (run / CHECKPOINT).exists():
        return
    # Of pictures that are held out the training knows only that they are.
    pictures = {one: _digest(ask[one]) for one in training} | dict.fromkeys(held_out, "")
    left_out = sorted(ask.keys() - pictures.keys())
    json_text.write(run / SETTINGS, {"settings": given, "pictures": pictures, "left out": left_out})


def _digest(asked: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(asked)).encode()).hexdigest()[:12]
