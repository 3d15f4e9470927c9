"""The configuration of a split model, read from a checkpoint's `config.json`.

Promises that every number that both machines rely on (grid sides, widths, token ids) is checked. Leaves the tower's
own to `tower_config`, and the decoder's other keys to transformers, which gets them unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tofc.errors import CheckpointError
from tofc.model.tower_config import TowerConfig, parse_tower, positive
from tofc.model.views import ViewRule

ARCHITECTURE = "StepVLForConditionalGeneration"
_TEXT_REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """The configuration of a model built as STEP3-VL: a vision tower, a linear projector, a Qwen3 decoder.

    Raises `CheckpointError` for values that are not allowed. `read` makes one from a `config.json`.
    """

    tower: TowerConfig
    """The vision tower."""
    text: dict[str, Any]
    """Keyword arguments of transformers' `Qwen3Config`."""
    image_token_id: int
    """Id of `<im_patch>`, whose embeddings are replaced by features."""
    projector_bias: bool = False
    """Whether the projector has a bias."""
    understand_projector_stride: int = 2
    """Stride of each of the two convolutions behind the transformer; only 2 is supported."""
    global_size: int = 728
    """Side of the global view in px, a multiple of the tower's patch size."""
    crop_size: int = 504
    """Side of a crop in px, a multiple of the tower's patch size."""
    max_side: int = 3024
    """Longest side of a picture in px; larger pictures are scaled down."""

    def __post_init__(self) -> None:
        for key in _TEXT_REQUIRED:
            positive(f"text_config.{key}", self.text.get(key))
        for name in ("global_size", "crop_size"):
            value = positive(name, getattr(self, name))
            if value % self.tower.side_multiple:
                raise CheckpointError(
                    f"config.json: {name} must be a multiple of the patch size {self.tower.side_multiple}, got {value}"
                )
        positive("max_side", self.max_side)
        if not 0 <= self.image_token_id < self.text["vocab_size"]:
            raise CheckpointError(
                f"config.json: image_token_id must be 0 to {self.text['vocab_size'] - 1}, inside the vocabulary, got "
                f"{self.image_token_id}"
            )
        if self.understand_projector_stride != 2:
            raise CheckpointError(
                f"config.json: understand_projector_stride must be 2 (both convolutions halve), got "
                f"{self.understand_projector_stride}"
            )

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> SplitConfig:
        """Parse the content of `config.json`; the released key names (`width`, `layers`, …) are accepted too."""
        if ARCHITECTURE not in raw.get("architectures", [ARCHITECTURE]):
            raise CheckpointError(
                f"config.json: architectures must hold {ARCHITECTURE!r}, got {raw['architectures']!r}; give the "
                "checkpoint of a STEP3-VL model"
            )
        for key in ("vision_config", "text_config"):
            if not isinstance(raw.get(key), dict):
                raise CheckpointError(f"config.json has no object {key!r}; give the checkpoint of a STEP3-VL model")
        tower = parse_tower(raw["vision_config"])
        text = {k: v for k, v in raw["text_config"].items() if k not in ("model_type", "architectures")}
        text.setdefault("tie_word_embeddings", False)
        settings: dict[str, Any] = {
            "image_token_id": raw.get("image_token_id", 151679),
            "projector_bias": bool(raw.get("projector_bias", False)),
            "understand_projector_stride": raw.get("understand_projector_stride", 2),
            **{name: raw.get(name, size) for name, size in tower.sizes.items()},
        }
        return cls(tower=tower, text=text, **settings)

    @classmethod
    def read(cls, file: Path) -> SplitConfig:
        """Read a `config.json`. Raises `CheckpointError`, which names the file."""
        return cls.parse(read_json(file))

    @property
    def feature_dim(self) -> int:
        """D: numbers in a feature."""
        return self.tower.feature_dim

    @property
    def hidden(self) -> int:
        """H: width of the decoder, its hidden size."""
        return int(self.text["hidden_size"])

    @property
    def tied(self) -> bool:
        """Whether the decoder's output head is its embedding; then no `lm_head.weight` is stored."""
        return bool(self.text["tie_word_embeddings"])

    @property
    def rule(self) -> ViewRule:
        """How a picture becomes views."""
        return ViewRule(
            global_size=self.global_size,
            crop_size=self.crop_size,
            max_side=self.max_side,
            normalisation=self.tower.NORMALISATION,
        )

    def grid(self, px: int) -> int:
        """Return the side, in cells, of the grid of features of a square view of `px`."""
        return self.tower.grid(px)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint. Raises `CheckpointError`."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; give the directory of a checkpoint, which has one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as JSON ({error}); fetch or export the checkpoint again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{file} must hold a JSON object, got {type(found).__name__}; export the checkpoint again"
        )
    return found
