"""A checkpoint's defaults for sampling answers: its generation_config.json.

Promises checked values, and greedy decoding if the file is missing or does not ask for sampling. Leaves sampling to the
server's engines, and the options that come with a question to the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tofc.errors import CheckpointError
from tofc.model.checkpoint import Checkpoint
from tofc.model.config import read_json

FILE = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The sampling options of a question that sets none."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    max_tokens: int | None = None

    @classmethod
    def read(cls, path: Path) -> GenerationConfig:
        """Read the file in a checkpoint's folder. A key that is missing or null is off. Raises `CheckpointError`.

        `do_sample` decides between sampling and greedy decoding; if it is missing, a temperature means sampling.
        """
        file = path / FILE
        raw = {key: value for key, value in _content(path).items() if value is not None}

        def number(key: str, default: float, low: float, high: float, allowed: str) -> float:
            value = raw.get(key, default)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise _invalid(file, key, value, allowed)
            return float(value)

        def whole(key: str, default: int, low: int) -> int:
            value = raw.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
                raise _invalid(file, key, value, f"a whole number of at least {low}")
            return value

        sampled = raw.get("do_sample", "temperature" in raw)
        if not isinstance(sampled, bool):
            raise _invalid(file, "do_sample", sampled, "true or false")
        temperature = number("temperature", 1.0, 0.0, 100.0, "0 (greedy) to 100")
        return cls(
            temperature=temperature if sampled else 0.0,
            top_p=number("top_p", 1.0, 1e-6, 1.0, "0.000001 to 1"),
            top_k=max(0, whole("top_k", 0, -1)),  # some files have -1 for off
            max_tokens=whole("max_new_tokens", 1, 1) if "max_new_tokens" in raw else None,
        )


GREEDY = GenerationConfig()


def stop_tokens(checkpoint: Checkpoint, fallback: int | None = None) -> list[int]:
    """Return the ids that end an answer: from generation_config.json, else from the configuration, else `fallback`.

    Raises `CheckpointError` if none of them has any.
    """
    found: Any = _content(checkpoint.path).get("eos_token_id")
    if found is None:
        found = checkpoint.config.text.get("eos_token_id", fallback)
    ids = found if isinstance(found, list) else [found]
    if not ids or not all(isinstance(one, int) for one in ids):
        raise CheckpointError(
            f"{checkpoint.path} must name a token that ends an answer (eos_token_id is {found!r}); add it to {FILE}"
        )
    return ids


def _content(path: Path) -> dict[str, Any]:
    file = path / FILE
    return read_json(file) if file.exists() else {}


def _invalid(file: Path, key: str, value: Any, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {key} must be {allowed}, got {value!r}; correct it, or leave it out for the default"
    )
