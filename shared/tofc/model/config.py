"""The configuration of a split model, read from a checkpoint's `config.json`.

Promises that every number that both machines rely on (grid sides, widths, token ids) is checked here, and that a tower
which `perception_encoder` does not implement is refused. Leaves the decoder's other keys to transformers, which gets
them unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tofc.errors import CheckpointError
from tofc.model.views import ViewRule

ROPE_THETA = 10_000  # base of the frequencies of rotary positions
ARCHITECTURE = "StepVLForConditionalGeneration"
#: key in the released checkpoint → key in transformers' `Step3p7VisionConfig`
_VISION_ALIASES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ls_init_value": "layer_scale_init_value",
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 728,
    "mlp_ratio": 8960 / 1536,
    "layer_norm_eps": 1e-5,
    "layer_scale_init_value": 0.1,
}
#: the only values that `PerceptionEncoder` implements, under the keys of transformers' and vLLM's configurations
_VISION_FIXED: dict[str, Any] = {
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "use_ln_pre": True,
    "use_ln_post": False,
    "use_cls_token": False,
    "use_abs_posemb": True,
    "use_rope2d": True,
    "rope_theta": ROPE_THETA,
    "rope_type": "axial",
}
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
    """The configuration of STEP3-VL: a Perception Encoder tower, a linear projector, a Qwen3 decoder.

    Raises `CheckpointError` for values that are not allowed. `read` makes one from a `config.json`.
    """

    vision: dict[str, Any]
    """Keyword arguments of transformers' `Step3p7VisionConfig`."""
    text: dict[str, Any]
    """Keyword arguments of transformers' `Qwen3Config`."""
    image_token_id: int
    """Id of `<im_patch>`, whose embeddings are replaced by features."""
    projector_bias: bool = False
    """Whether the projector has a bias."""
    understand_projector_stride: int = 2
    """Stride of each of the two convolutions behind the transformer; only 2 is supported."""
    global_size: int = 728
    """Side of the global view in px, a multiple of the patch size."""
    crop_size: int = 504
    """Side of a crop in px, a multiple of the patch size."""
    max_side: int = 3024
    """Longest side of a picture in px; larger pictures are scaled down."""

    def __post_init__(self) -> None:
        for key in _TEXT_REQUIRED:
            _positive(f"text_config.{key}", self.text.get(key))
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
            _positive(f"vision_config.{key}", self.vision.get(key))
        rope = self.vision.get("rope_parameters")
        for key, value in [*self.vision.items(), *(rope.items() if isinstance(rope, dict) else [])]:
            if key in _VISION_FIXED and value != _VISION_FIXED[key]:
                raise CheckpointError(
                    f"config.json: vision_config.{key} must be {_VISION_FIXED[key]!r}, as in STEP3-VL's tower, got "
                    f"{value!r}"
                )
        for name in ("global_size", "crop_size"):
            value = _positive(name, getattr(self, name))
            if value % self.patch:
                raise CheckpointError(
                    f"config.json: {name} must be a multiple of the patch size {self.patch}, got {value}"
                )
        _positive("max_side", self.max_side)
        if self.vision["hidden_size"] % (4 * self.vision["num_attention_heads"]):
            raise CheckpointError(
                "config.json: the width of a vision head must be a multiple of 4 for 2-D rotary positions, got "
                f"{self.vision['hidden_size']} / {self.vision['num_attention_heads']} heads"
            )
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
        vision = dict(_VISION_DEFAULTS)
        for key, value in raw["vision_config"].items():
            if key not in ("model_type", "architectures", "torch_dtype", "dtype"):
                vision[_VISION_ALIASES.get(key, key)] = value
        text = {k: v for k, v in raw["text_config"].items() if k not in ("model_type", "architectures")}
        text.setdefault("tie_word_embeddings", False)
        settings: dict[str, Any] = {
            "image_token_id": raw.get("image_token_id", 151679),
            "projector_bias": bool(raw.get("projector_bias", False)),
            "understand_projector_stride": raw.get("understand_projector_stride", 2),
            "global_size": raw.get("global_size", vision["image_size"]),
            "crop_size": raw.get("crop_size", 504),
            "max_side": raw.get("max_side", 3024),
        }
        return cls(vision=vision, text=text, **settings)

    @classmethod
    def read(cls, file: Path) -> SplitConfig:
        """Read a `config.json`. Raises `CheckpointError`, which names the file."""
        return cls.parse(read_json(file))

    @property
    def patch(self) -> int:
        """Side of a patch in px."""
        return int(self.vision["patch_size"])

    @property
    def feature_dim(self) -> int:
        """D: numbers in a feature; each of the two convolutions doubles the tower's width."""
        return 4 * int(self.vision["hidden_size"])

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
        return ViewRule(global_size=self.global_size, crop_size=self.crop_size, max_side=self.max_side)

    def grid(self, px: int) -> int:
        """Return the side, in cells, of the grid of a square view of `px`: patches, halved twice by convolutions."""
        patches = px // self.patch
        return ((patches - 1) // 2 + 1 - 1) // 2 + 1


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


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {name} must be a positive whole number, got {value!r}")
    return value
