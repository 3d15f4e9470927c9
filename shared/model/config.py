"""The shape of a split model, read from a checkpoint's ``config.json``.

Promises that every number both machines rely on (grid sides, widths, token ids) comes from one checked
place, and that a tower which computes otherwise than ours is refused. Leaves the meaning of the decoder's other keys
to transformers, which gets them unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.model.views import ViewRule

ARCHITECTURE = "StepVLForConditionalGeneration"
#: what the released checkpoint calls the keys that transformers' ``Step3p7VisionConfig`` has
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
#: what ``PerceptionEncoder`` computes, in the words of transformers' and vLLM's configurations
_VISION_FIXED: dict[str, Any] = {
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "use_ln_pre": True,
    "use_ln_post": False,
    "use_cls_token": False,
    "use_abs_posemb": True,
    "use_rope2d": True,
    "rope_theta": 10_000,
    "rope_type": "axial",
}
_TEXT_NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """STEP3-VL: a Perception Encoder tower, a linear projector, a Qwen3 decoder.

    ``vision`` and ``text`` are the keyword arguments of transformers' ``Step3p7VisionConfig`` and ``Qwen3Config``.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    image_token_id: int
    projector_bias: bool = False
    understand_projector_stride: int = 2
    global_size: int = 728
    crop_size: int = 504
    max_side: int = 3024

    def __post_init__(self) -> None:
        for key in _TEXT_NEEDED:
            _positive(f"text_config.{key}", self.text.get(key))
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
            _positive(f"vision_config.{key}", self.vision.get(key))
        rope = self.vision.get("rope_parameters")
        for key, value in [*self.vision.items(), *(rope.items() if isinstance(rope, dict) else [])]:
            if key in _VISION_FIXED and value != _VISION_FIXED[key]:
                raise CheckpointError(
                    f"config.json: vision_config.{key} is {value!r}; only {_VISION_FIXED[key]!r} is supported, which "
                    "is what STEP3-VL's tower has"
                )
        for name in ("global_size", "crop_size"):
            value = _positive(name, getattr(self, name))
            if value % self.patch:
                raise CheckpointError(f"{name} is {value}, which is no multiple of the patch size {self.patch}")
        _positive("max_side", self.max_side)
        if self.vision["hidden_size"] % (4 * self.vision["num_attention_heads"]):
            raise CheckpointError(
                f"a tower {self.vision['hidden_size']} wide with {self.vision['num_attention_heads']} heads has no "
                "2-D rotary positions: the width of a head must be a multiple of 4"
            )
        if not 0 <= self.image_token_id < self.text["vocab_size"]:
            raise CheckpointError(
                f"image_token_id {self.image_token_id} is outside the vocabulary of {self.text['vocab_size']}"
            )
        if self.understand_projector_stride != 2:
            raise CheckpointError(
                f"understand_projector_stride is {self.understand_projector_stride}; only 2 (both convolutions halve) "
                "is supported"
            )

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> SplitConfig:
        """From the content of ``config.json``; released key names (``width``, ``layers``, …) are accepted."""
        if ARCHITECTURE not in raw.get("architectures", [ARCHITECTURE]):
            raise CheckpointError(
                f"config.json is of {raw['architectures']}, not of {ARCHITECTURE}: is this another model's checkpoint?"
            )
        for key in ("vision_config", "text_config"):
            if not isinstance(raw.get(key), dict):
                raise CheckpointError(f"config.json has no {key!r} object; a {ARCHITECTURE} checkpoint has one")
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
        """From a ``config.json``; raises ``CheckpointError`` naming the file."""
        return cls.parse(read_json(file))

    @property
    def patch(self) -> int:
        """Side of a patch in px."""
        return int(self.vision["patch_size"])

    @property
    def feature_dim(self) -> int:
        """D: width of a feature of the tower; each of the two convolutions doubles it."""
        return 4 * int(self.vision["hidden_size"])

    @property
    def hidden(self) -> int:
        """H: width of the decoder."""
        return int(self.text["hidden_size"])

    @property
    def tied(self) -> bool:
        """Whether the decoder's head is its embedding; then no ``lm_head.weight`` is stored."""
        return bool(self.text["tie_word_embeddings"])

    @property
    def rule(self) -> ViewRule:
        """How a picture becomes views."""
        return ViewRule(global_size=self.global_size, crop_size=self.crop_size, max_side=self.max_side)

    def grid(self, px: int) -> int:
        """Cells per side of a square view of ``px``: patches, halved twice (kernel 3, stride 2, padding 1)."""
        patches = px // self.patch
        return ((patches - 1) // 2 + 1 - 1) // 2 + 1


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; a checkpoint directory has one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as JSON ({error}); fetch or export the checkpoint again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not an object; export the checkpoint again")
    return found


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {name} is {value!r}, it must be a positive whole number")
    return value
